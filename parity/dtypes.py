"""Precisions, for real and for complex numbers."""

from __future__ import annotations

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
