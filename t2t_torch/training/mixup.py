"""Mixup (arXiv 1710.09412) and cutmix (arXiv 1905.04899) of a whole batch, by timm's rules (timm/data/mixup.py).

Twin: t2t_jax/training/mixup.py. An image's partner is its place in the flipped group; a group is a part of the batch,
or all of it. Drawing and mixing are apart: `Mixup.draw` decides, `Mixup.apply` is a pure function of what was decided,
and mixes as timm does for the same draws.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from t2t_torch.models.mix_token import flip_groups
from t2t_torch.training.loss import soft_targets

Box = tuple[Tensor, Tensor, Tensor, Tensor]
"""top, bottom, left, right, in pixels; the second and the last are not part of it."""


class MixupDraws(NamedTuple):
    """What chance decides. D is 1 for a whole batch, B / 2 for pairs, B for images."""

    lam: Tensor
    """(D,) Share of its own that an image keeps, before it is corrected for a clipped box; 1 leaves images alone."""
    use_cutmix: Tensor
    """(D,) Whether a box is exchanged (cutmix) instead of values mixed (mixup)."""
    centre: Tensor
    """(D, 2) Row and column of the box's centre."""


@dataclasses.dataclass(frozen=True)
class Mixup:
    """timm's `Mixup`, with the same names and defaults.

    Each of the authors' GPUs mixes its own part of a batch. Here `group` says how large the parts are, so that a run
    does not depend on the number of processes; one whose part is whole groups mixes without asking the others. The
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

    def __call__(
        self, images_BxCxHxW: Tensor, labels: Tensor, rng: np.random.Generator, *, part: int = 0, parts: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Mixed images and their targets (B, num_classes), as `rng` decides; these are part `part` of `parts` of a
        batch, for which all draws are made."""
        own, _, height, width = images_BxCxHxW.shape
        draws = self.draw(rng, own * parts, (height, width))
        group = self.group or own * parts
        rows = slice(part * own, (part + 1) * own)
        mine = MixupDraws(*(_per_image(draw, own * parts, group)[rows].to(images_BxCxHxW.device) for draw in draws))
        return self.apply(images_BxCxHxW, labels, mine)

    def draw(self, rng: np.random.Generator, batch: int, size: tuple[int, int]) -> MixupDraws:
        """Draws for `batch` images of `size` (height, width); `batch` is even, and a multiple of `group`.

        Raises:
            ValueError: it is not.
        """
        if batch % 2:
            raise ValueError(f"mixup and cutmix make pairs: {batch} images are an odd number")
        if batch % (self.group or batch):
            raise ValueError(f"group {self.group} does not divide a batch of {batch} images")
        count = {"batch": 1, "pair": batch // 2, "elem": batch}[self.mode]
        # One of the two may be off: then chance has no say.
        switch = self.switch_prob if self.mixup_alpha > 0 and self.cutmix_alpha > 0 else float(self.cutmix_alpha > 0)
        use_cutmix_D = rng.random(count) < switch
        alpha_D = np.where(use_cutmix_D, self.cutmix_alpha, self.mixup_alpha)
        lam_D = np.where(rng.random(count) < self.prob, rng.beta(alpha_D, alpha_D), 1.0)
        centre_Dx2 = rng.integers(0, size, (count, 2))
        return MixupDraws(
            torch.from_numpy(lam_D.astype(np.float32)), torch.from_numpy(use_cutmix_D), torch.from_numpy(centre_Dx2)
        )

    def apply(self, images_BxCxHxW: Tensor, labels: Tensor, draws: MixupDraws) -> tuple[Tensor, Tensor]:
        """Mixed images, of the same shape and dtype, and their targets (B, num_classes) in float32.

        Args:
            images_BxCxHxW: normalised images.
            labels: integers (B,), or targets (B, num_classes), which are mixed without further smoothing.
            draws: as `draw` makes them.
        """
        batch, _, height, width = images_BxCxHxW.shape
        group = self.group or batch
        lam_B, use_cutmix_B, centre_Bx2 = (_per_image(draw, batch, group) for draw in draws)
        (top_B, bottom_B, left_B, right_B), box_lam_B = cutmix_bbox_and_lam((height, width), lam_B, centre_Bx2)
        lam_B = torch.where(use_cutmix_B, box_lam_B, lam_B)
        rows_Hx1 = torch.arange(height, device=lam_B.device)[:, None]
        columns_W = torch.arange(width, device=lam_B.device)
        inside_BxHxW = _within(rows_Hx1, top_B, bottom_B) & _within(columns_W, left_B, right_B)

        partners_BxCxHxW = flip_groups(images_BxCxHxW, group)
        share_Bx1x1x1 = lam_B[:, None, None, None].to(images_BxCxHxW.dtype)
        cut_BxCxHxW = torch.where(inside_BxHxW[:, None], partners_BxCxHxW, images_BxCxHxW)
        mixed_BxCxHxW = images_BxCxHxW * share_Bx1x1x1 + partners_BxCxHxW * (1 - share_Bx1x1x1)
        images_BxCxHxW = torch.where(use_cutmix_B[:, None, None, None], cut_BxCxHxW, mixed_BxCxHxW)
        return images_BxCxHxW, mixup_target(labels, self.num_classes, lam_B, self.label_smoothing, group)


def mixup_target(
    labels: Tensor, num_classes: int, lam_B: Tensor, smoothing: float = 0.0, group: int | None = None
) -> Tensor:
    """lam * y + (1 - lam) * y of the flipped groups; (B, num_classes) float32.

    Args:
        labels: integers (B,), smoothed here, or targets (B, num_classes), taken as they are.
        num_classes: of the targets.
        lam_B: share of an image's own target.
        smoothing: share of the target spread over all classes.
        group: images among which partners are found; None for the whole batch.
    """
    if labels.ndim == 1:
        labels = soft_targets(labels, num_classes, smoothing, torch.float32)
    own_Bx1 = lam_B[:, None].float()
    return labels * own_Bx1 + flip_groups(labels, group or len(labels)) * (1 - own_Bx1)


def cutmix_bbox_and_lam(size: tuple[int, int], lam_B: Tensor, centre_Bx2: Tensor) -> tuple[Box, Tensor]:
    """Boxes of share 1 - lam of an image of `size` (height, width), clipped at its borders, and the lam that is left.

    In float32, as timm for pairs and images; for a whole batch timm has float64, which gives another side where
    height * sqrt(1 - lam) is within rounding of a whole number.
    """
    limits_2 = torch.tensor(size, device=lam_B.device)
    sides_Bx2 = (limits_2.to(lam_B.dtype) * torch.sqrt(1 - lam_B)[:, None]).long()
    low_Bx2 = torch.minimum((centre_Bx2 - sides_Bx2 // 2).clamp(min=0), limits_2)
    high_Bx2 = torch.minimum((centre_Bx2 + (sides_Bx2 + 1) // 2).clamp(min=0), limits_2)
    whole = size[0] * size[1]
    lam_B = (whole - (high_Bx2 - low_Bx2).prod(dim=-1)).to(lam_B.dtype) / whole
    return (low_Bx2[:, 0], high_Bx2[:, 0], low_Bx2[:, 1], high_Bx2[:, 1]), lam_B


def _per_image(draw_D: Tensor, batch: int, group: int) -> Tensor:
    """One draw for each of `batch` images: all alike, or one for an image and its partner, or as they are."""
    count = len(draw_D)
    if count == 1:
        return draw_D.expand(batch, *draw_D.shape[1:])
    if count == batch:
        return draw_D
    first_GxD = draw_D.unflatten(0, (-1, group // 2))
    return torch.cat([first_GxD, first_GxD.flip(1)], dim=1).flatten(0, 1)


def _within(positions: Tensor, low_B: Tensor, high_B: Tensor) -> Tensor:
    return (positions >= low_B[:, None, None]) & (positions < high_B[:, None, None])
