"""Layer-wise sparsity allocation for pruning large language models, measured at equal cost."""

__version__ = "0.1.0"
