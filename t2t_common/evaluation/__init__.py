"""Evaluation and prediction, whatever computes the logits."""
