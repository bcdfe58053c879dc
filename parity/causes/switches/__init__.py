"""Mistakes in the forward pass that are tried, by the kind of layer."""
