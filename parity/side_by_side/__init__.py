"""Training in both frameworks at once: the same batches, draws, optimiser and schedule, step by step."""
