"""Conversion of weights between PyTorch and Flax NNX: layer rules, ledger of tensors, copying."""
