"""Real models: what a family looks like, how to slice it, how to measure its loss."""
