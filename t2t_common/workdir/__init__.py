"""Working directory of a training run: lock, checkpoints, metrics log and run record."""
