"""Training in both frameworks in parallel: the same batches, draws, optimizer and schedule, step by step."""
