"""Problems, allocations and the projection onto a budget. No torch."""
