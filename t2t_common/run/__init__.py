"""A training run, whatever computes it: its folder, lock, log, speed, saving and interruption."""
