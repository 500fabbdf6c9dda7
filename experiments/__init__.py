"""Questions to the methods: grids in config/grids/ and readers of what they saved. See experiments/README.md."""
