"""The workflow's steps and what surrounds them."""
