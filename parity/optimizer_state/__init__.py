"""Optimizer state converted between `torch.optim` and optax."""
