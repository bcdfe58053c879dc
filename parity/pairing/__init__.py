"""Pairing of the inputs, calls and outputs of both models, and of their layouts."""
