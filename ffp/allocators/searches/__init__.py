"""Methods that evaluate candidates, one a file."""
