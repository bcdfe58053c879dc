"""Scalars to differentiate: the same loss, written in both frameworks.

Shapes: B batch, K classes.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch


@dataclasses.dataclass(frozen=True)
class Loss:
    """A scalar of a model's output, once per framework; both see the output in their own layout."""

    name: str
    torch: Callable[[Any], torch.Tensor]
    jax: Callable[[Any], jax.Array]


def cross_entropy(labels: np.ndarray, smoothing: float = 0.1) -> Loss:
    """Mean cross entropy of logits (B, K) with `labels` (B,), smoothed as in PyTorch: (1 - s) one-hot + s / K.

    Labels (B, K) are soft targets; smoothing mixes them with 1 / K in the same way.
    """
    labels = np.asarray(labels)

    def in_jax(logits: jax.Array) -> jax.Array:
        classes = logits.shape[-1]
        target = (
            jnp.asarray(labels, logits.dtype) if labels.ndim == 2 else jax.nn.one_hot(labels.astype(np.int32), classes)
        )
        target = target.astype(logits.dtype) * (1 - smoothing) + smoothing / classes
        return -(target * jax.nn.log_softmax(logits, axis=-1)).sum(axis=-1).mean()

    def in_torch(logits: torch.Tensor) -> torch.Tensor:
        target = torch.from_numpy(labels).to(logits.device)
        target = target.to(logits.dtype) if labels.ndim == 2 else target
        return torch.nn.functional.cross_entropy(logits, target, label_smoothing=smoothing)

    return Loss(f"cross entropy, smoothing {smoothing}", in_torch, in_jax)


def projection(axes: Sequence[int] | None = None, seed: int = 1) -> Loss:
    """<output, c> with one fixed random direction c of norm about 1: sees every output element.

    `axes` turn PyTorch's output into JAX's, so that both sides meet the same direction.
    """

    def direction(shape: tuple[int, ...]) -> np.ndarray:
        draw = np.random.RandomState((zlib.crc32(repr(shape).encode()) + seed) % 2**32)
        return draw.standard_normal(shape) / np.sqrt(np.prod(shape))

    def in_torch(output: torch.Tensor) -> torch.Tensor:
        return (output * torch.from_numpy(direction(tuple(output.shape))).to(output)).sum()

    def in_jax(output: jax.Array) -> jax.Array:
        back = None if axes is None else np.argsort(axes)
        shape = output.shape if back is None else tuple(output.shape[axis] for axis in back)
        c = direction(shape) if axes is None else direction(shape).transpose(axes)
        return (output * jnp.asarray(c, output.dtype)).sum()

    return Loss("projection on a fixed random direction", in_torch, in_jax)


def default_loss(shapes: Sequence[Sequence[int]], axes: Sequence[Sequence[int] | None]) -> Loss:
    """Cross entropy for outputs that look like logits, (B, K) with K > 1; projections for others; summed if several."""
    losses = [
        cross_entropy((np.arange(shape[0]) * 2 + 1) % shape[1]) if len(shape) == 2 and shape[1] > 1 else projection(a)
        for shape, a in zip(shapes, axes, strict=True)
    ]
    if len(losses) == 1:
        return losses[0]

    def in_torch(output: Any) -> torch.Tensor:
        leaves = [x for x in torch.utils._pytree.tree_flatten(output)[0] if isinstance(x, torch.Tensor)]
        return torch.stack([loss.torch(x) for loss, x in zip(losses, leaves, strict=True)]).sum()

    def in_jax(output: Any) -> jax.Array:
        return jnp.stack([loss.jax(x) for loss, x in zip(losses, jax.tree.leaves(output), strict=True)]).sum()

    return Loss("; ".join(loss.name for loss in losses), in_torch, in_jax)
