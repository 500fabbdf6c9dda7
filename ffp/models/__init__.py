"""Models of transformers: what can be pruned in them, how they are cut, loaded and saved."""
