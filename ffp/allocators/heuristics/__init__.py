"""Methods that answer from sizes and calibration statistics, one a file."""
