"""Models of other JAX libraries in place of a `flax.nnx.Module`: one file for each library."""

from parity.carry.program import Adapter, Program

__all__ = ["Adapter", "Program"]
