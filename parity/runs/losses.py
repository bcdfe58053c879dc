"""Scalar losses to differentiate, implemented identically in both frameworks.

Shapes: B batch, K classes.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from parity.recording.structure import tensors


@dataclasses.dataclass(frozen=True)
class Loss:
    """A scalar loss of a model's output, one function per framework; each takes the output in its own layout."""

    name: str
    torch: Callable[[Any], torch.Tensor]
    jax: Callable[[Any], jax.Array]


def cross_entropy(labels: np.ndarray, smoothing: float = 0.1) -> Loss:
    """Mean cross entropy of logits (B, K) with `labels` (B,), smoothed as in PyTorch: (1 - s) one-hot + s / K.

    Labels of shape (B, K) are soft targets; smoothing mixes them with 1 / K in the same way.
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
    """<output, c> with a fixed random direction c of norm about 1: depends on every output element.

    `axes` permute PyTorch's output to JAX's, so that both sides use the same direction.
    """

    def direction(shape: tuple[int, ...]) -> np.ndarray:
        draw = np.random.RandomState((zlib.crc32(repr(shape).encode()) + seed) % 2**32)
        return np.asarray(draw.standard_normal(shape) / np.sqrt(np.prod(shape)))  # numpy returns a scalar for shape ()

    def in_torch(output: torch.Tensor) -> torch.Tensor:
        return (output * torch.from_numpy(direction(tuple(output.shape))).to(output)).sum()

    def in_jax(output: jax.Array) -> jax.Array:
        back = None if axes is None else np.argsort(axes)
        shape = output.shape if back is None else tuple(output.shape[axis] for axis in back)
        c = direction(shape) if axes is None else direction(shape).transpose(axes)
        return (output * jnp.asarray(c, output.dtype)).sum()

    return Loss("projection on a fixed random direction", in_torch, in_jax)


LINEAR = 1024.0
"""Larger outputs enter the default loss by their logarithm, so that finfo.min does not overflow float32."""


def default_loss(shapes: Sequence[Sequence[int]], axes: Sequence[Sequence[int] | None]) -> Loss:
    """Return a loss with a gradient and a curvature in every direction of every output.

        L = sum over outputs of 1 / sqrt(n) sum_i a_i y_i + b_i (sqrt(1 + y_i^2) - 1)

    a_i ~ N(0, 1), b_i ~ U(1/2, 3/2), seeded by the output's index and shape; n is the size of the output. Real and
    imaginary part of a complex output are two numbers. For |y_i| > 1024, y_i is replaced by
    sign(y_i) 1024 (1 + log(|y_i| / 1024)). Infinities, NaN and non-floating outputs contribute nothing. Why the loss
    detects every difference: docs, Tolerances.

    Args:
        shapes: Shapes of the outputs in PyTorch's layout, in the order of `parity.recording.structure`.
        axes: Permutation from PyTorch's layout to JAX's, per output.
    """
    layouts = [layout for _, layout in zip(shapes, axes, strict=True)]

    def in_torch(output: Any) -> torch.Tensor:
        terms = [_torch_term(x, i) for i, x in enumerate(tensors(output)) if x.is_floating_point() or x.is_complex()]
        return torch.stack(_some(terms)).sum()

    def in_jax(output: Any) -> jax.Array:
        terms = [
            _jax_term(x, i, layouts[i] if i < len(layouts) else None)
            for i, x in enumerate(tensors(output))
            if jnp.issubdtype(x.dtype, jnp.inexact)
        ]
        return jnp.stack(_some(terms)).sum()

    return Loss("random direction and curvature in every output", in_torch, in_jax)


def _some(terms: list[Any]) -> list[Any]:
    if not terms:
        raise ValueError('no output is a floating tensor: use level="forward", or give a loss')
    return terms


def _drawn(index: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return a and b of an output, in PyTorch's layout."""
    draw = np.random.RandomState(zlib.crc32(repr((index, shape)).encode()))
    scale = 1 / math.sqrt(max(math.prod(shape), 1))
    return draw.standard_normal(shape) * scale, draw.uniform(0.5, 1.5, shape) * scale


def _torch_term(y: torch.Tensor, index: int) -> torch.Tensor:
    y = torch.view_as_real(y.resolve_conj()) if y.is_complex() else y
    a, b = (torch.from_numpy(np.asarray(x)).to(y) for x in _drawn(index, tuple(y.shape)))
    y = torch.where(torch.isfinite(y), y, 0.0)
    t = torch.where(y.abs() <= LINEAR, y, y.sign() * LINEAR * (1 + (y.abs().clamp(min=LINEAR) / LINEAR).log()))
    return (a * t + b * (t * t / (1 + torch.sqrt(1 + t * t)))).sum()


def _jax_term(y: jax.Array, index: int, axes: Sequence[int] | None) -> jax.Array:
    shape = y.shape if axes is None else tuple(y.shape[int(axis)] for axis in np.argsort(axes))
    if jnp.iscomplexobj(y):
        y, shape = jnp.stack([y.real, y.imag], -1), (*shape, 2)
        axes = None if axes is None else (*axes, len(axes))
    a, b = (jnp.asarray(x if axes is None else x.transpose(axes), y.dtype) for x in _drawn(index, shape))
    y = jnp.where(jnp.isfinite(y), y, 0)
    t = jnp.where(abs(y) <= LINEAR, y, jnp.sign(y) * LINEAR * (1 + jnp.log(jnp.maximum(abs(y), LINEAR) / LINEAR)))
    return (a * t + b * (t * t / (1 + jnp.sqrt(1 + t * t)))).sum()
