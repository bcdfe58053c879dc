"""Random erasing (arXiv 1708.04896) of a whole batch, as in timm (timm/data/random_erasing.py, mode "pixel").

Twin: t2t_jax/training/random_erasing.py.

timm tries up to ten rectangles and takes the first that fits. Here all ten are sampled at once and the first that fits
is used: the same distribution. Sampling and erasing are separate, as in mixup.py.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from t2t_config.recipes.batch_augmentation import ErasingSettings

ATTEMPTS = 10
"""Number of rectangles to try; an image for which none fits is unchanged."""


class ErasingDraws(NamedTuple):
    """Random numbers for a batch; A is the number of attempts."""

    erase: Tensor
    """(B,) Whether to erase in an image."""
    area: Tensor
    """(B, A) Area of each rectangle, as a share of the image."""
    log_aspect: Tensor
    """(B, A) Logarithm of each rectangle's height / width."""
    corner: Tensor
    """(B, 2) Position of the rectangle, from 0 (top, left) to below 1 (bottom, right)."""
    noise: Tensor
    """(B, C, H, W) Replacement pixels; zeros for images that are not erased."""


class RandomErasing(ErasingSettings):
    """timm's `RandomErasing(mode="pixel", max_count=1)`: replace one rectangle of an image by normal noise."""

    def __call__(self, images_BxCxHxW: Tensor, rng: np.random.Generator, *, part: int = 0, parts: int = 1) -> Tensor:
        """Erase random rectangles of `images_BxCxHxW` (normalized), sampled with `rng`.

        The images are part `part` of `parts` of a batch; draws are made for the whole batch.
        """
        return erase(images_BxCxHxW, self.draw(rng, images_BxCxHxW, part=part, parts=parts))

    def draw(self, rng: np.random.Generator, images_BxCxHxW: Tensor, *, part: int = 0, parts: int = 1) -> ErasingDraws:
        """Sample the draws for images of this shape, dtype and device."""
        own, device = len(images_BxCxHxW), images_BxCxHxW.device
        tries, widest = (own * parts, ATTEMPTS), -math.log(self.min_aspect)
        whole_batch = (
            rng.random(own * parts) < self.probability,
            rng.uniform(self.min_area, self.max_area, tries).astype(np.float32),
            rng.uniform(-widest, widest, tries).astype(np.float32),
            rng.random((own * parts, 2), np.float32),
            rng.integers(2**63, size=own * parts),
        )
        mine = slice(part * own, (part + 1) * own)
        erase, area, log_aspect, corner, seeds = (torch.from_numpy(draw[mine]) for draw in whole_batch)
        # One seed per image, so that a process need not generate the noise of other processes.
        noise, generator = torch.zeros_like(images_BxCxHxW), torch.Generator(device)
        for row in erase.nonzero().flatten().tolist():
            generator.manual_seed(int(seeds[row]))
            noise[row].normal_(generator=generator)
        return ErasingDraws(erase.to(device), area.to(device), log_aspect.to(device), corner.to(device), noise)


def erase(images_BxCxHxW: Tensor, draws: ErasingDraws) -> Tensor:
    """Return images with the drawn rectangles replaced by noise."""
    size = images_BxCxHxW.shape[2:]
    limits_2 = torch.tensor(size, device=images_BxCxHxW.device)
    area_BxA, aspect_BxA = draws.area * (size[0] * size[1]), torch.exp(draws.log_aspect)
    sides_BxAx2 = torch.sqrt(torch.stack([area_BxA * aspect_BxA, area_BxA / aspect_BxA], dim=-1)).round().long()
    fits_BxA = (sides_BxAx2 < limits_2).all(dim=-1)
    first_B = fits_BxA.int().argmax(dim=-1)  # the first maximum
    sides_Bx2 = sides_BxAx2[torch.arange(len(first_B), device=first_B.device), first_B]
    low_Bx2 = torch.floor(draws.corner * (limits_2 - sides_Bx2 + 1)).long()
    high_Bx2 = low_Bx2 + sides_Bx2

    inside_BxHxW = (draws.erase & fits_BxA.any(dim=-1))[:, None, None]
    rows_Hx1, columns_W = (torch.arange(side, device=first_B.device) for side in size)
    for axis, positions in enumerate((rows_Hx1[:, None], columns_W)):
        low_Bx1x1, high_Bx1x1 = low_Bx2[:, axis, None, None], high_Bx2[:, axis, None, None]
        inside_BxHxW = inside_BxHxW & (positions >= low_Bx1x1) & (positions < high_Bx1x1)
    return torch.where(inside_BxHxW[:, None], draws.noise, images_BxCxHxW)
