"""Precisions, for real and for complex numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import torch


def in_precision(own: Any, dtype: Any) -> Any:
    """`dtype`, or where `own` (a dtype of JAX or numpy) is complex, the complex type with parts of that precision.

    There is none shorter than complex64.
    """
    return jnp.promote_types(dtype, jnp.complex64) if jnp.issubdtype(own, jnp.complexfloating) else dtype


def torch_in_precision(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A floating or complex tensor in the precision of `dtype`, real or complex as it is; others as they are.

    `Module.to(dtype)` would drop the imaginary part.
    """
    if tensor.is_complex():
        return tensor.to(torch.promote_types(dtype, torch.complex64))
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


@contextlib.contextmanager
def as_xla_rounds() -> Iterator[None]:
    """While open, PyTorch on CPU takes subnormal numbers (below 2^-126 in float32) for zero, as XLA on CPU always does.

    So that PyTorch's own float32 error shows what that costs.
    """
    tiny = torch.tensor([1e-40])
    before = not bool((tiny * 1.0).any())
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
