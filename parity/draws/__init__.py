"""Training mode: the random draws of both models, matched, and handed the same numbers."""
