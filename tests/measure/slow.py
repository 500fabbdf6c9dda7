"""What the tests of scores compare with."""

import numpy as np
import torch

WORDS = ["[UNK]", "</s>", *(chr(c) for c in range(32, 127)), "\n"]


def slow_losses(model, windows):
    """Cross entropy token by token from all logits at once."""
    with torch.no_grad():
        logs = torch.log_softmax(model(windows).logits.double(), -1)
    return np.array(
        [[-float(logs[i, t, windows[i, t + 1]]) for t in range(windows.shape[1] - 1)] for i in range(len(windows))]
    )
