"""Runs of both models in one precision: inputs and outputs of every module, free or forced, and gradients of a loss."""
