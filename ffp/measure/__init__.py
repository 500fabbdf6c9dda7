"""Windows of tokens, losses, calibration, rewards and scores of models."""
