"""The references' own results on any model and tokens, quirks included, compared with what the references gave.

No grid runs this: the methods of `ffp` meet the budget exactly and have no quirks. Parity shows that we understand a
published algorithm, so every quota, tie and rounding here is the reference's. Run `python -m tests.parity --help`.
"""
