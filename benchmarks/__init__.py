"""How fast ffp is: scripts that time one part each and write their figures into benchmarks/results/."""
