"""What a pair of somebody else's architecture consists of, and tensor helpers that several of them need."""

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
"""What PyTorch's model takes."""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One right pair.

    Attributes:
        torch, jax: make the two models.
        inputs: draws what PyTorch's model takes.
        rules: what the pair needs besides the built-in rules.
        trains: whether training mode differs from evaluation mode, so that it is worth a run of its own.
    """

    torch: Callable[[], torch.nn.Module]
    jax: Callable[[nnx.Rngs], nnx.Module]
    inputs: Callable[[np.random.RandomState], Inputs]
    rules: Rules = dataclasses.field(default_factory=Rules)
    trains: bool = False

    def make(self, seed: int) -> tuple[torch.nn.Module, nnx.Module, Inputs]:
        """Both models with the same weights, none of them neutral, and the inputs, all drawn from `seed`."""
        torch_model, jax_model = copy.deepcopy(self._built[0]), nnx.clone(self._built[1])
        randomize(torch_model, seed)
        _power_complex(torch_model, seed)
        torch_to_jax(torch_model, jax_model, rules=self.rules)
        return torch_model, jax_model, self.inputs(np.random.RandomState(seed))

    @functools.cached_property
    def _built(self) -> tuple[torch.nn.Module, nnx.Module]:
        """Once: flax draws first weights operation by operation, which takes long."""
        return self.torch(), self.jax(nnx.Rngs(0))


def _power_complex(model: torch.nn.Module, seed: int) -> None:
    """Fills complex tensors with 0.5 z / sqrt(rows), z complex and standard normal."""
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if tensor.is_complex():
                draw = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
                z = draw.standard_normal((2, *tensor.shape))
                tensor.copy_(torch.from_numpy(0.5 * (z[0] + 1j * z[1]) / np.sqrt(len(z[0]))))


def normal(*shape: int, scale: float = 1.0) -> Callable[[np.random.RandomState], np.ndarray]:
    """Draws one standard normal array."""
    return lambda draw: scale * draw.standard_normal(shape)


def channels_last(x: jax.Array) -> jax.Array:
    """(B, C, ...) -> (B, ..., C)."""
    return jnp.moveaxis(x, 1, -1)


def channels_first(x: jax.Array) -> jax.Array:
    """(B, ..., C) -> (B, C, ...)."""
    return jnp.moveaxis(x, -1, 1)


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """(B, N, heads * d) -> (B, heads, N, d)."""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def join_heads(x: jax.Array) -> jax.Array:
    """(B, heads, N, d) -> (B, N, heads * d)."""
    x = x.swapaxes(1, 2)
    return x.reshape(*x.shape[:2], -1)


def upper(length: int, diagonal: int = 0) -> jax.Array:
    """(1, 1, length, length): whether a key comes `diagonal` or more positions after its query."""
    query, key = jnp.arange(length)[:, None], jnp.arange(length)[None]
    return (key >= query + diagonal)[None, None]
