"""Mixup (arXiv 1710.09412) and cutmix (arXiv 1905.04899) of a whole batch, as in timm (timm/data/mixup.py).

Twin: t2t_jax/training/mixup.py.

Each image is mixed with the image at its position in the flipped group; a group is a part of the batch, or all of it.
Sampling and mixing are separate: `Mixup.draw` samples, and `Mixup.apply` is a pure function of the draws that gives the
same result as timm for the same draws.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from t2t_config.recipes.batch_augmentation import MixupSettings
from t2t_torch.models.mix_token import flip_groups
from t2t_torch.training.loss import soft_targets

Box = tuple[Tensor, Tensor, Tensor, Tensor]
"""Top, bottom, left, right in pixels; bottom and right are exclusive."""


class MixupDraws(NamedTuple):
    """Random numbers for a batch. D is 1 in mode `batch`, B / 2 in `pair`, B in `elem`."""

    lam: Tensor
    """(D,) Weight of the image itself, before correction for a clipped box; 1 leaves images unchanged."""
    use_cutmix: Tensor
    """(D,) Whether to use cutmix instead of mixup."""
    centre: Tensor
    """(D, 2) Row and column of the center of the box."""


class Mixup(MixupSettings):
    """timm's `Mixup`, with the same names and defaults.

    Each of the authors' GPUs mixes its own part of a batch. Here `group` says how large the parts are, so that a run
    does not depend on the number of processes; a process whose part consists of whole groups mixes without
    communication. In mode `batch`, all groups share the draws.
    """

    def __call__(
        self, images_BxCxHxW: Tensor, labels: Tensor, rng: np.random.Generator, *, part: int = 0, parts: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Return mixed images and their targets (B, num_classes), sampled with `rng`.

        The images are part `part` of `parts` of a batch; draws are made for the whole batch.
        """
        own, _, height, width = images_BxCxHxW.shape
        draws = self.draw(rng, own * parts, (height, width))
        group = self.group or own * parts
        rows = slice(part * own, (part + 1) * own)
        mine = MixupDraws(*(_per_image(draw, own * parts, group)[rows].to(images_BxCxHxW.device) for draw in draws))
        return self.apply(images_BxCxHxW, labels, mine)

    def draw(self, rng: np.random.Generator, batch: int, size: tuple[int, int]) -> MixupDraws:
        """Sample the draws for `batch` images of `size` (height, width).

        Raises:
            ValueError: `batch` is odd, or not a multiple of `group`.
        """
        if batch % 2:
            raise ValueError(f"mixup and cutmix make pairs: {batch} images are an odd number")
        if batch % (self.group or batch):
            raise ValueError(f"group {self.group} does not divide a batch of {batch} images")
        count = {"batch": 1, "pair": batch // 2, "elem": batch}[self.mode]
        # If one of the two is off, the other is always used.
        switch = self.switch_prob if self.mixup_alpha > 0 and self.cutmix_alpha > 0 else float(self.cutmix_alpha > 0)
        use_cutmix_D = rng.random(count) < switch
        alpha_D = np.where(use_cutmix_D, self.cutmix_alpha, self.mixup_alpha)
        lam_D = np.where(rng.random(count) < self.prob, rng.beta(alpha_D, alpha_D), 1.0)
        centre_Dx2 = rng.integers(0, size, (count, 2))
        return MixupDraws(
            torch.from_numpy(lam_D.astype(np.float32)), torch.from_numpy(use_cutmix_D), torch.from_numpy(centre_Dx2)
        )

    def apply(self, images_BxCxHxW: Tensor, labels: Tensor, draws: MixupDraws) -> tuple[Tensor, Tensor]:
        """Return mixed images, of the same shape and dtype, and their targets (B, num_classes) in float32.

        Args:
            images_BxCxHxW: Normalized images.
            labels: Integers (B,), or targets (B, num_classes), which are mixed without further smoothing.
            draws: Draws returned by `draw`.
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
    """Return lam * y + (1 - lam) * (y in flipped groups), (B, num_classes) float32.

    Args:
        labels: Integers (B,), smoothed here, or targets (B, num_classes), used as they are.
        num_classes: Number of classes of the targets.
        lam_B: Weight of an image's own target.
        smoothing: Share of the target distributed over all classes.
        group: Size of the groups to flip; None for the whole batch.
    """
    if labels.ndim == 1:
        labels = soft_targets(labels, num_classes, smoothing, torch.float32)
    own_Bx1 = lam_B[:, None].float()
    return labels * own_Bx1 + flip_groups(labels, group or len(labels)) * (1 - own_Bx1)


def cutmix_bbox_and_lam(size: tuple[int, int], lam_B: Tensor, centre_Bx2: Tensor) -> tuple[Box, Tensor]:
    """Return boxes with share 1 - lam of an image of `size` (height, width), clipped at its borders, and corrected lam.

    Computed in float32, like timm in modes `pair` and `elem`. In mode `batch` timm uses float64, which gives another
    side length where height * sqrt(1 - lam) is within rounding error of an integer.
    """
    limits_2 = torch.tensor(size, device=lam_B.device)
    sides_Bx2 = (limits_2.to(lam_B.dtype) * torch.sqrt(1 - lam_B)[:, None]).long()
    low_Bx2 = torch.minimum((centre_Bx2 - sides_Bx2 // 2).clamp(min=0), limits_2)
    high_Bx2 = torch.minimum((centre_Bx2 + (sides_Bx2 + 1) // 2).clamp(min=0), limits_2)
    whole = size[0] * size[1]
    lam_B = (whole - (high_Bx2 - low_Bx2).prod(dim=-1)).to(lam_B.dtype) / whole
    return (low_Bx2[:, 0], high_Bx2[:, 0], low_Bx2[:, 1], high_Bx2[:, 1]), lam_B


def _per_image(draw_D: Tensor, batch: int, group: int) -> Tensor:
    """Expand D draws to one per image: shared by all images (D = 1), by the two of a pair, or already one per image."""
    count = len(draw_D)
    if count == 1:
        return draw_D.expand(batch, *draw_D.shape[1:])
    if count == batch:
        return draw_D
    first_GxD = draw_D.unflatten(0, (-1, group // 2))
    return torch.cat([first_GxD, first_GxD.flip(1)], dim=1).flatten(0, 1)


def _within(positions: Tensor, low_B: Tensor, high_B: Tensor) -> Tensor:
    return (positions >= low_B[:, None, None]) & (positions < high_B[:, None, None])
