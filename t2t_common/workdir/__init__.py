"""The folder of a training run: its lock, checkpoints, log lines and record."""
