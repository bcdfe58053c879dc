"""What a training run is made of: recipe, optimiser, mixing, losses, checkpoints."""
