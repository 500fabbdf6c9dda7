"""Which units go once an allocation says how many: scores, masks and what follows the cut."""
