"""Values of a PyTorch model and of a JAX program, recorded operation by operation, and which of them are equal."""
