"""Weights and optimiser state carried between PyTorch and Flax NNX: layer rules, the ledger of tensors, conversion."""
