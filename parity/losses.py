"""Scalars to differentiate: the same loss, written in both frameworks.

Shapes: B batch, K classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch


@dataclasses.dataclass(frozen=True)
class Loss:
    """A scalar of a model's output, once per framework. `jax` gets the output as `axes` brought it from PyTorch."""

    name: str
    torch: Callable[[Any], torch.Tensor]
    jax: Callable[[Any], jax.Array]


def cross_entropy(labels: np.ndarray, smoothing: float = 0.1) -> Loss:
    """Mean cross entropy of logits (B, K) with `labels` (B,), smoothed as in PyTorch: (1 - s) one-hot + s / K."""

    def in_jax(logits: jax.Array) -> jax.Array:
        classes = logits.shape[-1]
        target = jax.nn.one_hot(labels, classes, dtype=logits.dtype) * (1 - smoothing) + smoothing / classes
        return -(target * jax.nn.log_softmax(logits, axis=-1)).sum(axis=-1).mean()

    def in_torch(logits: torch.Tensor) -> torch.Tensor:
        target = torch.from_numpy(np.asarray(labels)).to(logits.device)
        return torch.nn.functional.cross_entropy(logits, target, label_smoothing=smoothing)

    return Loss(f"cross entropy, smoothing {smoothing}", in_torch, in_jax)


def projection(shape: tuple[int, ...], seed: int = 1) -> Loss:
    """<output, c> with one fixed random direction c of unit variance / sqrt(size): sees every output element."""
    direction = np.random.RandomState(seed).standard_normal(shape) / np.sqrt(np.prod(shape))

    def in_jax(output: jax.Array) -> jax.Array:
        return (output * jnp.asarray(direction, output.dtype)).sum()

    def in_torch(output: torch.Tensor) -> torch.Tensor:
        return (output * torch.from_numpy(direction).to(output)).sum()

    return Loss("projection on a fixed random direction", in_torch, in_jax)


def default_loss(shape: tuple[int, ...]) -> Loss:
    """Cross entropy for an output that looks like logits, (B, K) with K > 1; a projection for any other."""
    if len(shape) == 2 and shape[1] > 1:
        return cross_entropy((np.arange(shape[0]) * 2 + 1) % shape[1])
    return projection(shape)
