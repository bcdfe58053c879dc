"""Conversion of gray images with more than 8 bits (microscopes, scanners, satellites) to the 8 bits that models take.

Pillow's own `convert` clips values above 255, so such an image becomes white, and rounds fractions down, so an image in
0..1 becomes black.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

BITS = 258
"""TIFF tag for the bits per sample."""


def to_8_bits(image: Image.Image) -> Image.Image:
    """Return `image` scaled to 8 bits if it is gray with more than 8 bits, else unchanged.

    Integers of up to 16 bits are divided by the largest value of their bit depth: 65535, or 4095 for a TIFF of 12 bits.
    Floats in 0..1 are multiplied by 255. For larger values the range is unknown: values in 0..255 are kept, integers in
    0..65535 are treated as 16 bits, and everything else is stretched from its own minimum to its maximum.

    Raises:
        ValueError: If pixels are not finite.
    """
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    pixels = np.array(image, np.float32)
    least, most = _range(image, pixels)
    pixels -= least  # in place: there may be millions of pixels
    pixels *= 255 / (most - least) if most > least else 0
    return Image.fromarray(np.rint(pixels, out=pixels).clip(0, 255, out=pixels).astype(np.uint8))


def _range(image: Image.Image, pixels: np.ndarray) -> tuple[float, float]:
    """Return the values that are mapped to 0 and to 255."""
    low, high = float(pixels.min()), float(pixels.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("its pixels are not finite")
    if image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):  # Pillow scales PPM to 16 bits
        return 0, (1 << _bits(image)) - 1
    most = next((most for most in ((255, 65535) if image.mode == "I" else (1, 255)) if high <= most), None)
    return (0, most) if most is not None and low >= 0 else (low, high)


def _bits(image: Image.Image) -> int:
    tag = getattr(image, "tag_v2", {}).get(BITS, (16,))
    bits = max(tag) if isinstance(tag, tuple) else tag
    return bits if isinstance(bits, int) and 8 < bits <= 16 else 16
