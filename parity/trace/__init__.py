"""Find the values of a PyTorch model among the values of a JAX program, whatever the program's structure."""
