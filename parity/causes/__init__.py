"""Naming the cause: which single switch turns PyTorch's arithmetic into what JAX computed."""

from parity.causes.naming import enclosing, find_causes, name_causes

__all__ = ["enclosing", "find_causes", "name_causes"]
