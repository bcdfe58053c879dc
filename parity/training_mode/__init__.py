"""Training mode with the same random draws on both sides."""
