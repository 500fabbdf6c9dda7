"""What is measured of a model: token windows, losses, statistics, rewards, scores and cost."""
