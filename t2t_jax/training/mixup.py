"""Mixup (arXiv 1710.09412) and cutmix (arXiv 1905.04899) on the device, as in timm (timm/data/mixup.py).

Twin: t2t_torch/training/mixup.py.

Each image is mixed with the image at its position in the flipped group; a group is a part of the batch, or all of it.
Sampling and mixing are separate: `Mixup.draw` samples from a key, and `Mixup.apply` is a pure function of the draws
that gives the same result as timm for the same draws. All shapes are fixed, so that a compiled step traces once.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from t2t_config.recipes.batch_augmentation import MixupSettings
from t2t_jax.models.mix_token import flip_groups
from t2t_jax.training.loss import soft_targets

Box = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
"""Top, bottom, left, right in pixels; bottom and right are exclusive."""


class MixupDraws(NamedTuple):
    """Random numbers for a batch. D is 1 in mode `batch`, B / 2 in `pair`, B in `elem`."""

    lam: jax.Array
    """(D,) Weight of the image itself, before correction for a clipped box; 1 leaves images unchanged."""
    use_cutmix: jax.Array
    """(D,) Whether to use cutmix instead of mixup."""
    centre: jax.Array
    """(D, 2) Row and column of the center of the box, int32."""


class Mixup(MixupSettings):
    """timm's `Mixup`, with the same names and defaults.

    Each of the authors' GPUs mixes its own part of a batch. Here `group` says how large the parts are, so that a run
    does not depend on the number of devices; a device whose part consists of whole groups mixes without communication.
    In mode `batch`, all groups share the draws.
    """

    def __call__(self, images_BxHxWxC: jax.Array, labels: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return mixed images and their targets (B, num_classes), sampled with `key`."""
        return self.apply(images_BxHxWxC, labels, self.draw(key, images_BxHxWxC.shape))

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> MixupDraws:
        """Sample the draws for images of `shape` (B, H, W, C).

        Raises:
            ValueError: B is odd, or not a multiple of `group`.
        """
        batch, height, width = shape[:3]
        if batch % 2:
            raise ValueError(f"mixup and cutmix make pairs: {batch} images are an odd number")
        if batch % (self.group or batch):
            raise ValueError(f"group {self.group} does not divide a batch of {batch} images")
        count = {"batch": 1, "pair": batch // 2, "elem": batch}[self.mode]
        on_key, switch_key, lam_key, row_key, column_key = jax.random.split(key, 5)
        # If one of the two is off, the other is always used.
        switch = self.switch_prob if self.mixup_alpha > 0 and self.cutmix_alpha > 0 else float(self.cutmix_alpha > 0)
        use_cutmix_D = jax.random.uniform(switch_key, (count,)) < switch
        alpha_D = jnp.where(use_cutmix_D, self.cutmix_alpha, self.mixup_alpha)
        lam_D = jax.random.beta(lam_key, alpha_D, alpha_D, (count,))
        lam_D = jnp.where(jax.random.uniform(on_key, (count,)) < self.prob, lam_D, 1.0)
        rows_D = jax.random.randint(row_key, (count,), 0, height)
        columns_D = jax.random.randint(column_key, (count,), 0, width)
        return MixupDraws(lam_D, use_cutmix_D, jnp.stack([rows_D, columns_D], axis=-1))

    def apply(self, images_BxHxWxC: jax.Array, labels: jax.Array, draws: MixupDraws) -> tuple[jax.Array, jax.Array]:
        """Return mixed images, of the same shape and dtype, and their targets (B, num_classes) in float32.

        Args:
            images_BxHxWxC: Normalized images.
            labels: Integers (B,), or targets (B, num_classes), which are mixed without further smoothing.
            draws: Draws returned by `draw`.
        """
        batch, height, width, _ = images_BxHxWxC.shape
        group = self.group or batch
        (top_B, bottom_B, left_B, right_B), box_lam_B = cutmix_bbox_and_lam(
            (height, width), *(_per_image(draw, batch, group) for draw in (draws.lam, draws.centre))
        )
        use_cutmix_B = _per_image(draws.use_cutmix, batch, group)
        lam_B = jnp.where(use_cutmix_B, box_lam_B, _per_image(draws.lam, batch, group))
        rows_HxW, columns_HxW = jnp.mgrid[:height, :width]
        inside_BxHxW = _within(rows_HxW, top_B, bottom_B) & _within(columns_HxW, left_B, right_B)

        partners_BxHxWxC = flip_groups(images_BxHxWxC, group)
        share_Bx1x1x1 = lam_B[:, None, None, None].astype(images_BxHxWxC.dtype)
        cut_BxHxWxC = jnp.where(inside_BxHxW[..., None], partners_BxHxWxC, images_BxHxWxC)
        mixed_BxHxWxC = images_BxHxWxC * share_Bx1x1x1 + partners_BxHxWxC * (1 - share_Bx1x1x1)
        images_BxHxWxC = jnp.where(use_cutmix_B[:, None, None, None], cut_BxHxWxC, mixed_BxHxWxC)
        return images_BxHxWxC, mixup_target(labels, self.num_classes, lam_B, self.label_smoothing, group)


def mixup_target(
    labels: jax.Array, num_classes: int, lam_B: jax.Array, smoothing: float = 0.0, group: int | None = None
) -> jax.Array:
    """Return lam * y + (1 - lam) * (y in flipped groups), (B, num_classes) float32.

    Args:
        labels: Integers (B,), smoothed here, or targets (B, num_classes), used as they are.
        num_classes: Number of classes of the targets.
        lam_B: Weight of an image's own target.
        smoothing: Share of the target distributed over all classes.
        group: Size of the groups to flip; None for the whole batch.
    """
    if labels.ndim == 1:
        labels = soft_targets(labels, num_classes, smoothing, jnp.dtype(jnp.float32))
    own_Bx1 = lam_B[:, None].astype(jnp.float32)
    return labels * own_Bx1 + flip_groups(labels, group or len(labels)) * (1 - own_Bx1)


def cutmix_bbox_and_lam(size: tuple[int, int], lam_B: jax.Array, centre_Bx2: jax.Array) -> tuple[Box, jax.Array]:
    """Return boxes with share 1 - lam of an image of `size` (height, width), clipped at its borders, and corrected lam.

    Computed in float32, like timm in modes `pair` and `elem`. In mode `batch` timm uses float64, which gives another
    side length where height * sqrt(1 - lam) is within rounding error of an integer.
    """
    limits_1x2 = jnp.asarray([size], jnp.int32)
    sides_Bx2 = (limits_1x2.astype(lam_B.dtype) * jnp.sqrt(1 - lam_B)[:, None]).astype(jnp.int32)
    low_Bx2 = jnp.clip(centre_Bx2 - sides_Bx2 // 2, 0, limits_1x2)
    high_Bx2 = jnp.clip(centre_Bx2 + (sides_Bx2 + 1) // 2, 0, limits_1x2)
    whole = size[0] * size[1]
    lam_B = (whole - jnp.prod(high_Bx2 - low_Bx2, axis=-1)).astype(lam_B.dtype) / whole
    return (low_Bx2[:, 0], high_Bx2[:, 0], low_Bx2[:, 1], high_Bx2[:, 1]), lam_B


def _per_image(draw_D: jax.Array, batch: int, group: int) -> jax.Array:
    """Expand D draws to one per image: shared by all images (D = 1), by the two of a pair, or already one per image."""
    count = len(draw_D)
    if count == 1:
        return jnp.broadcast_to(draw_D, (batch, *draw_D.shape[1:]))
    if count == batch:
        return draw_D
    first_GxD = draw_D.reshape(-1, group // 2, *draw_D.shape[1:])
    return jnp.concatenate([first_GxD, first_GxD[:, ::-1]], axis=1).reshape(batch, *draw_D.shape[1:])


def _within(positions_HxW: jax.Array, low_B: jax.Array, high_B: jax.Array) -> jax.Array:
    return (positions_HxW[None] >= low_B[:, None, None]) & (positions_HxW[None] < high_B[:, None, None])
