"""Allocators, one method per file. They see a problem, calibration statistics and a reward, never a model."""
