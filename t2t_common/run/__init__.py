"""What a training run does whatever computes it: log, speed, saving, what it checks before it goes on."""
