"""Mixup (arXiv 1710.09412) and cutmix (arXiv 1905.04899) on the device, by timm's rules (timm/data/mixup.py).

Twin: t2t_torch/training/mixup.py.

An image's partner is its place in the flipped group; a group is a part of the batch, or all of it. Drawing and mixing
are apart: `Mixup.draw` decides from a key, `Mixup.apply` is a pure function of what was decided, and mixes as timm does
for the same draws. All shapes are fixed, so that a compiled step traces once.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from t2t_jax.models.mix_token import flip_groups
from t2t_jax.training.loss import soft_targets

Box = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
"""top, bottom, left, right, in pixels; the second and the last are not part of it."""


class MixupDraws(NamedTuple):
    """What chance decides. D is 1 for a whole batch, B / 2 for pairs, B for images."""

    lam: jax.Array
    """(D,) Share of its own that an image keeps, before it is corrected for a clipped box; 1 leaves images alone."""
    use_cutmix: jax.Array
    """(D,) Whether a box is exchanged (cutmix) instead of values mixed (mixup)."""
    centre: jax.Array
    """(D, 2) Row and column of the box's centre, int32."""


@dataclasses.dataclass(frozen=True)
class Mixup:
    """timm's `Mixup`, with the same names and defaults.

    Each of the authors' GPUs mixes its own part of a batch. Here `group` says how large the parts are, so that a run
    does not depend on the number of devices; a device whose part is whole groups mixes without asking the others. The
    draws of the mode `batch` hold for all groups.

    Raises:
        ValueError: neither mixup nor cutmix is on, or a figure makes no sense.
    """

    mixup_alpha: float = 1.0
    """Both parameters of mixup's beta distribution; 0 turns it off."""
    cutmix_alpha: float = 0.0
    """Both parameters of cutmix's beta distribution; 0 turns it off."""
    prob: float = 1.0
    """Probability of either."""
    switch_prob: float = 0.5
    """Probability of cutmix where both are on."""
    mode: Literal["batch", "pair", "elem"] = "batch"
    """What shares a draw: the batch, an image and its partner, nothing."""
    label_smoothing: float = 0.1
    """Share of the target spread over all classes, of integer labels."""
    num_classes: int = 1000
    group: int | None = None
    """Images among which partners are found, by flipping; None for the whole batch."""

    def __post_init__(self) -> None:
        if min(self.mixup_alpha, self.cutmix_alpha) < 0 or self.mixup_alpha == self.cutmix_alpha == 0:
            alphas = f"mixup_alpha {self.mixup_alpha} and cutmix_alpha {self.cutmix_alpha}"
            raise ValueError(f"{alphas} must not be negative, and one must be positive")
        for name in ("prob", "switch_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.mode not in ("batch", "pair", "elem"):
            raise ValueError(f"mode {self.mode!r} is not one of batch, pair, elem")
        if self.group is not None and (self.group < 2 or self.group % 2):
            raise ValueError(f"group must be even and positive, got {self.group}")

    def __call__(self, images_BxHxWxC: jax.Array, labels: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mixed images and their targets (B, num_classes), as `key` decides."""
        return self.apply(images_BxHxWxC, labels, self.draw(key, images_BxHxWxC.shape))

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> MixupDraws:
        """Draws for images of `shape` (B, H, W, C); B is even, and a multiple of `group`.

        Raises:
            ValueError: B is not.
        """
        batch, height, width = shape[:3]
        if batch % 2:
            raise ValueError(f"mixup and cutmix make pairs: {batch} images are an odd number")
        if batch % (self.group or batch):
            raise ValueError(f"group {self.group} does not divide a batch of {batch} images")
        count = {"batch": 1, "pair": batch // 2, "elem": batch}[self.mode]
        on_key, switch_key, lam_key, row_key, column_key = jax.random.split(key, 5)
        # One of the two may be off: then chance has no say.
        switch = self.switch_prob if self.mixup_alpha > 0 and self.cutmix_alpha > 0 else float(self.cutmix_alpha > 0)
        use_cutmix_D = jax.random.uniform(switch_key, (count,)) < switch
        alpha_D = jnp.where(use_cutmix_D, self.cutmix_alpha, self.mixup_alpha)
        lam_D = jax.random.beta(lam_key, alpha_D, alpha_D, (count,))
        lam_D = jnp.where(jax.random.uniform(on_key, (count,)) < self.prob, lam_D, 1.0)
        rows_D = jax.random.randint(row_key, (count,), 0, height)
        columns_D = jax.random.randint(column_key, (count,), 0, width)
        return MixupDraws(lam_D, use_cutmix_D, jnp.stack([rows_D, columns_D], axis=-1))

    def apply(self, images_BxHxWxC: jax.Array, labels: jax.Array, draws: MixupDraws) -> tuple[jax.Array, jax.Array]:
        """Mixed images, of the same shape and dtype, and their targets (B, num_classes) in float32.

        Args:
            images_BxHxWxC: normalised images.
            labels: integers (B,), or targets (B, num_classes), which are mixed without further smoothing.
            draws: as `draw` makes them.
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
    """lam * y + (1 - lam) * y of the flipped groups; (B, num_classes) float32.

    Args:
        labels: integers (B,), smoothed here, or targets (B, num_classes), taken as they are.
        num_classes: of the targets.
        lam_B: share of an image's own target.
        smoothing: share of the target spread over all classes.
        group: images among which partners are found; None for the whole batch.
    """
    if labels.ndim == 1:
        labels = soft_targets(labels, num_classes, smoothing, jnp.dtype(jnp.float32))
    own_Bx1 = lam_B[:, None].astype(jnp.float32)
    return labels * own_Bx1 + flip_groups(labels, group or len(labels)) * (1 - own_Bx1)


def cutmix_bbox_and_lam(size: tuple[int, int], lam_B: jax.Array, centre_Bx2: jax.Array) -> tuple[Box, jax.Array]:
    """Boxes of share 1 - lam of an image of `size` (height, width), clipped at its borders, and the lam that is left.

    In float32, as timm for pairs and images; for a whole batch timm has float64, which gives another side where
    height * sqrt(1 - lam) is within rounding of a whole number.
    """
    limits_1x2 = jnp.asarray([size], jnp.int32)
    sides_Bx2 = (limits_1x2.astype(lam_B.dtype) * jnp.sqrt(1 - lam_B)[:, None]).astype(jnp.int32)
    low_Bx2 = jnp.clip(centre_Bx2 - sides_Bx2 // 2, 0, limits_1x2)
    high_Bx2 = jnp.clip(centre_Bx2 + (sides_Bx2 + 1) // 2, 0, limits_1x2)
    whole = size[0] * size[1]
    lam_B = (whole - jnp.prod(high_Bx2 - low_Bx2, axis=-1)).astype(lam_B.dtype) / whole
    return (low_Bx2[:, 0], high_Bx2[:, 0], low_Bx2[:, 1], high_Bx2[:, 1]), lam_B


def _per_image(draw_D: jax.Array, batch: int, group: int) -> jax.Array:
    """One draw for each of `batch` images: all alike, or one for an image and its partner, or as they are."""
    count = len(draw_D)
    if count == 1:
        return jnp.broadcast_to(draw_D, (batch, *draw_D.shape[1:]))
    if count == batch:
        return draw_D
    first_GxD = draw_D.reshape(-1, group // 2, *draw_D.shape[1:])
    return jnp.concatenate([first_GxD, first_GxD[:, ::-1]], axis=1).reshape(batch, *draw_D.shape[1:])


def _within(positions_HxW: jax.Array, low_B: jax.Array, high_B: jax.Array) -> jax.Array:
    return (positions_HxW[None] >= low_B[:, None, None]) & (positions_HxW[None] < high_B[:, None, None])
