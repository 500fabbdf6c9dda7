"""Which units or weights go once an allocation says how many, and what makes up for them."""
