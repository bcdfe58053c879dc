"""Find the cause of a mismatch: the single switch that makes PyTorch compute what JAX computed."""

from parity.causes.find_cause import enclosing, find_causes, name_causes
from parity.causes.precision.float32_only import find_single_causes

__all__ = ["enclosing", "find_causes", "find_single_causes", "name_causes"]
