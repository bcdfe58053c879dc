"""Proposal of the rules that pair the tensors of two models with different names, order and weights."""
