"""Random erasing (arXiv 1708.04896) on the device, as in timm (timm/data/random_erasing.py, mode "pixel").

Twin: t2t_torch/training/random_erasing.py.

timm tries up to ten rectangles and takes the first that fits. Here all ten are sampled at once and the first that fits
is used: the same distribution with fixed shapes. Sampling and erasing are separate, as in mixup.py.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from t2t_config.recipes.batch_augmentation import ErasingSettings

ATTEMPTS = 10
"""Number of rectangles to try; an image for which none fits is unchanged."""


class ErasingDraws(NamedTuple):
    """Random numbers for a batch; A is the number of attempts."""

    erase: jax.Array
    """(B,) Whether to erase in an image."""
    area: jax.Array
    """(B, A) Area of each rectangle, as a share of the image."""
    log_aspect: jax.Array
    """(B, A) Logarithm of each rectangle's height / width."""
    corner: jax.Array
    """(B, 2) Position of the rectangle, from 0 (top, left) to below 1 (bottom, right)."""
    noise: jax.Array
    """(B, H, W, C) Replacement pixels."""


class RandomErasing(ErasingSettings):
    """timm's `RandomErasing(mode="pixel", max_count=1)`: replace one rectangle of an image by normal noise."""

    def __call__(self, images_BxHxWxC: jax.Array, key: jax.Array) -> jax.Array:
        """Erase random rectangles of `images_BxHxWxC` (normalized), sampled with `key`."""
        return erase(images_BxHxWxC, self.draw(key, images_BxHxWxC.shape, images_BxHxWxC.dtype))

    def draw(self, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> ErasingDraws:
        """Sample the draws for images of `shape` (B, H, W, C)."""
        erase_key, area_key, aspect_key, corner_key, noise_key = jax.random.split(key, 5)
        tries, widest = (shape[0], ATTEMPTS), -math.log(self.min_aspect)
        return ErasingDraws(
            jax.random.uniform(erase_key, shape[:1]) < self.probability,
            jax.random.uniform(area_key, tries, minval=self.min_area, maxval=self.max_area),
            jax.random.uniform(aspect_key, tries, minval=-widest, maxval=widest),
            jax.random.uniform(corner_key, (shape[0], 2)),
            jax.random.normal(noise_key, shape, dtype),
        )


def erase(images_BxHxWxC: jax.Array, draws: ErasingDraws) -> jax.Array:
    """Return images with the drawn rectangles replaced by noise."""
    _, height, width, _ = images_BxHxWxC.shape
    limits_1x2 = jnp.asarray([(height, width)])
    area_BxA, aspect_BxA = draws.area * (height * width), jnp.exp(draws.log_aspect)
    sides_BxAx2 = jnp.sqrt(jnp.stack([area_BxA * aspect_BxA, area_BxA / aspect_BxA], axis=-1))
    sides_BxAx2 = jnp.round(sides_BxAx2).astype(jnp.int32)
    fits_BxA = jnp.all(sides_BxAx2 < limits_1x2[None], axis=-1)
    first_B = jnp.argmax(fits_BxA, axis=-1)
    sides_Bx2 = jnp.take_along_axis(sides_BxAx2, first_B[:, None, None], axis=1)[:, 0]
    low_Bx2 = jnp.floor(draws.corner * (limits_1x2 - sides_Bx2 + 1)).astype(jnp.int32)
    high_Bx2 = low_Bx2 + sides_Bx2

    rows_HxW, columns_HxW = jnp.mgrid[:height, :width]
    inside_BxHxW = (draws.erase & fits_BxA.any(axis=-1))[:, None, None]
    for axis, positions_HxW in enumerate((rows_HxW, columns_HxW)):
        low_Bx1x1, high_Bx1x1 = low_Bx2[:, axis, None, None], high_Bx2[:, axis, None, None]
        inside_BxHxW &= (positions_HxW[None] >= low_Bx1x1) & (positions_HxW[None] < high_Bx1x1)
    return jnp.where(inside_BxHxW[..., None], draws.noise, images_BxHxWxC)
