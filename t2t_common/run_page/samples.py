"""Images of a batch as small PNGs, as the model gets them: augmented, mixed, erased."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

COUNT = 12
"""Images at most."""
SIDE = 112
"""Longer side in pixels at most; larger images are scaled down."""


def encode(
    images_BxHxWxC: np.ndarray,
    labels: np.ndarray,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    smoothing: float = 0.0,
) -> list[dict[str, Any]]:
    """For each image `png` (base64) and `labels`, pairs (class, share), the largest share first.

    Args:
        images_BxHxWxC: normalised by `mean` and `std`, one figure per channel.
        labels: integers (B,), or targets (B, num_classes).
        mean: of the pixels in 0..1.
        std: of the pixels in 0..1.
        smoothing: share of targets that is spread over all classes; it is taken out.
    """
    pixels_BxHxWxC = images_BxHxWxC * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
    pixels_BxHxWxC = np.round(np.clip(pixels_BxHxWxC, 0, 1) * 255).astype(np.uint8)
    return [
        {"png": png(pixels_HxWxC), "labels": shares(label, smoothing)}
        for pixels_HxWxC, label in zip(pixels_BxHxWxC, np.asarray(labels), strict=True)
    ]


def png(pixels_HxWxC: np.ndarray) -> str:
    """8-bit pixels of one or three channels as a PNG, in base64."""
    image = Image.fromarray(pixels_HxWxC[..., 0] if pixels_HxWxC.shape[-1] == 1 else pixels_HxWxC)
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def shares(label: np.ndarray, smoothing: float) -> list[tuple[int, float]]:
    """(class, share) of a label or of a target (num_classes,), the largest first, without what smoothing added."""
    if label.ndim == 0:
        return [(int(label), 1.0)]
    own = (label.astype(np.float64) - smoothing / len(label)) / (1 - smoothing)
    order = np.argsort(-own, kind="stable")
    return [(int(index), float(own[index])) for index in order if own[index] >= 0.005]
