"""Conversion of real and complex dtypes to a given precision."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import torch


def in_precision(own: Any, dtype: Any) -> Any:
    """Return `dtype`, or the complex type with parts of that precision if `own` (a JAX or numpy dtype) is complex.

    The smallest complex type is complex64.
    """
    return jnp.promote_types(dtype, jnp.complex64) if jnp.issubdtype(own, jnp.complexfloating) else dtype


def torch_in_precision(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Convert a floating or complex tensor to the precision of `dtype`, keeping it real or complex.

    Other tensors are unchanged. `Module.to(dtype)` would drop the imaginary part.
    """
    if tensor.is_complex():
        return tensor.to(torch.promote_types(dtype, torch.complex64))
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


@contextlib.contextmanager
def as_xla_rounds() -> Iterator[None]:
    """Make PyTorch on CPU flush subnormal numbers (below 2^-126 in float32) to zero, as XLA on CPU always does.

    PyTorch's own float32 error then includes the effect of flushing.
    """
    tiny = torch.tensor([1e-40])
    before = not bool((tiny * 1.0).any())
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
