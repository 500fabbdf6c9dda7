"""Where files lie, what is in them, and how they are written."""
