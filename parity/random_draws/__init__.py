"""Random draws of PyTorch and Flax models: recorded, paired, and replaced by the same numbers."""
