"""Bicubic resizing from its definition, in all common conventions."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def resize(x: torch.Tensor, size: Sequence[int], a: float, *, antialias: bool, edge: str) -> torch.Tensor:
    """Bicubic resize of the last two axes of (B, C, H, W), one axis after the other.

    Args:
        a: Keys' coefficient (IEEE ASSP 29.6, 1981): -0.75 in torch, -0.5 in PIL, jax.image and torch with antialias.
        antialias: Stretch the kernel when the image shrinks.
        edge: Pixels outside take the nearest value inside ("clamp"), or have no weight ("renormalise").
    """
    for axis, length in zip((-2, -1), size, strict=True):
        matrix = weights(x.shape[axis], length, a, antialias=antialias, edge=edge).to(x)
        x = (x.transpose(axis, -1) @ matrix.T).transpose(axis, -1)
    return x


def weights(source: int, target: int, a: float, *, antialias: bool, edge: str) -> torch.Tensor:
    """Return the weight of each source pixel in each target pixel, (target, source); half-pixel centres."""
    stretch = max(source / target, 1.0) if antialias else 1.0
    centre = (torch.arange(target, dtype=torch.float64) + 0.5) * source / target - 0.5
    reach = int(2 * stretch) + 2
    pixel = centre.floor().long()[:, None] + torch.arange(-reach, reach + 1)
    weight = _cubic((pixel - centre[:, None]) / stretch, a)
    inside = (pixel >= 0) & (pixel < source)
    if edge == "renormalise":
        weight = weight * inside
    weight = weight / weight.sum(1, keepdim=True)
    return torch.zeros(target, source, dtype=torch.float64).scatter_add_(1, pixel.clamp(0, source - 1), weight)


def _cubic(x: torch.Tensor, a: float) -> torch.Tensor:
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))
