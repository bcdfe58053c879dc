"""Mistakes in the forward pass to try, by kind of layer."""
