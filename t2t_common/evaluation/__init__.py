"""Framework-independent evaluation and prediction."""
