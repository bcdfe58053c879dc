"""Components of a training run: recipe, optimizer, augmentation, losses, checkpoints."""
