"""Encode images of a training batch as small PNGs, after augmentation, mixing and random erasing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from t2t_common import pages

COUNT = 12
"""Maximum number of images."""
SIDE = 112
"""Maximum length of the longer side in pixels; larger images are scaled down."""


def encode(
    images_BxHxWxC: np.ndarray,
    labels: np.ndarray,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    smoothing: float = 0.0,
) -> list[dict[str, Any]]:
    """Return `png` (base64) and `labels` for each image; `labels` are pairs (class, share), largest share first.

    Args:
        images_BxHxWxC: Images normalized by `mean` and `std`, one value per channel.
        labels: Integer labels (B,), or targets (B, num_classes).
        mean: Mean of the pixels in 0..1.
        std: Standard deviation of the pixels in 0..1.
        smoothing: Label smoothing of the targets, which is removed.
    """
    pixels_BxHxWxC = images_BxHxWxC * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
    pixels_BxHxWxC = np.round(np.clip(pixels_BxHxWxC, 0, 1) * 255).astype(np.uint8)
    return [
        {"png": png(pixels_HxWxC), "labels": shares(label, smoothing)}
        for pixels_HxWxC, label in zip(pixels_BxHxWxC, np.asarray(labels), strict=True)
    ]


def png(pixels_HxWxC: np.ndarray) -> str:
    """Encode 8-bit pixels with one or three channels as a PNG in base64."""
    image = Image.fromarray(pixels_HxWxC[..., 0] if pixels_HxWxC.shape[-1] == 1 else pixels_HxWxC)
    image.thumbnail((SIDE, SIDE))
    return pages.png(image)


def shares(label: np.ndarray, smoothing: float) -> list[tuple[int, float]]:
    """Return (class, share) of a label or target (num_classes,), largest share first, with label smoothing removed."""
    if label.ndim == 0:
        return [(int(label), 1.0)]
    own = (label.astype(np.float64) - smoothing / len(label)) / (1 - smoothing)
    order = np.argsort(-own, kind="stable")
    return [(int(index), float(own[index])) for index in order if own[index] >= 0.005]
