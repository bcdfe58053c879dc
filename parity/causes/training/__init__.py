"""Causes of wrong gradients, optimizer steps and running statistics."""
