"""JAX's own softmax in a narrower format, needed to match errors: its `exp` rounds differently from PyTorch's."""

from __future__ import annotations

import functools

import jax
import numpy as np
import torch

FORMATS = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def softmax_by_jax(x: torch.Tensor, dtype: torch.dtype, axis: int = -1) -> torch.Tensor:
    """Compute `jax.nn.softmax` of x rounded to `dtype`; return the result in float64."""
    short = np.asarray(x.detach().double().numpy()).astype(jax.numpy.dtype(FORMATS[dtype]))
    return torch.from_numpy(np.array(_compiled(axis)(short)).astype(np.float64))


@functools.cache
def _compiled(axis: int) -> jax.stages.Wrapped:
    return jax.jit(functools.partial(jax.nn.softmax, axis=axis))
