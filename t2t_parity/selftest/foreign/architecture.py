"""Pair of models of a third-party architecture, and shared tensor helpers."""

from __future__ import annotations

import copy
import dataclasses
import functools
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from parity.carry.convert import torch_to_jax
from parity.carry.random_weights import randomize
from parity.carry.rules import Rules

Inputs = np.ndarray | tuple[np.ndarray, ...]
"""Inputs of the PyTorch model."""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One correct pair.

    Attributes:
        torch, jax: Functions that create the two models.
        inputs: Function that draws inputs of the PyTorch model.
        rules: Rules that the pair needs in addition to the built-in ones.
        trains: Whether training mode differs from evaluation mode, and so needs a separate run.
    """

    torch: Callable[[], torch.nn.Module]
    jax: Callable[[nnx.Rngs], nnx.Module]
    inputs: Callable[[np.random.RandomState], Inputs]
    rules: Rules = dataclasses.field(default_factory=Rules)
    trains: bool = False

    def make(self, seed: int) -> tuple[torch.nn.Module, nnx.Module, Inputs]:
        """Create both models with the same weights, none of them 0 or 1, and inputs, all drawn from `seed`."""
        torch_model, jax_model = copy.deepcopy(self._built[0]), nnx.clone(self._built[1])
        randomize(torch_model, seed)
        _power_complex(torch_model, seed)
        torch_to_jax(torch_model, jax_model, rules=self.rules)
        return torch_model, jax_model, self.inputs(np.random.RandomState(seed))

    @functools.cached_property
    def _built(self) -> tuple[torch.nn.Module, nnx.Module]:
        """Both models, created once: initialization in flax is slow, as it runs uncompiled."""
        return self.torch(), self.jax(nnx.Rngs(0))


def _power_complex(model: torch.nn.Module, seed: int) -> None:
    """Fill complex tensors with 0.5 z / sqrt(rows), with real and imaginary parts of z standard normal."""
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if tensor.is_complex():
                draw = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
                z = draw.standard_normal((2, *tensor.shape))
                tensor.copy_(torch.from_numpy(0.5 * (z[0] + 1j * z[1]) / np.sqrt(len(z[0]))))


def normal(*shape: int, scale: float = 1.0) -> Callable[[np.random.RandomState], np.ndarray]:
    """Return a function that draws a normal array with standard deviation `scale`."""
    return lambda draw: scale * draw.standard_normal(shape)


def channels_last(x: jax.Array) -> jax.Array:
    """Transpose (B, C, ...) to (B, ..., C)."""
    return jnp.moveaxis(x, 1, -1)


def channels_first(x: jax.Array) -> jax.Array:
    """Transpose (B, ..., C) to (B, C, ...)."""
    return jnp.moveaxis(x, -1, 1)


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """Split (B, N, heads * d) into (B, heads, N, d)."""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def join_heads(x: jax.Array) -> jax.Array:
    """Merge (B, heads, N, d) into (B, N, heads * d)."""
    x = x.swapaxes(1, 2)
    return x.reshape(*x.shape[:2], -1)


def upper(length: int, diagonal: int = 0) -> jax.Array:
    """Return a mask (1, 1, length, length), true where a key is at least `diagonal` positions after its query."""
    query, key = jnp.arange(length)[:, None], jnp.arange(length)[None]
    return (key >= query + diagonal)[None, None]
