"""MixToken (arXiv 2104.10858): exchange of a box of tokens between pairs of images.

Source: zihangJiang/TokenLabeling: tlt/models/lvvit.py. Twin: t2t_jax/models/mix_token.py.
Shapes: B batch, N tokens on a grid, C channels.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class MixToken:
    """Box of the token grid in which every image takes its partner's tokens.

    `bottom` and `right` are exclusive. Partners are assigned within groups of `group` consecutive images
    (None for the whole batch): the partner of an image is at its position in the reversed group.
    """

    top: int
    bottom: int
    left: int
    right: int
    group: int | None = None

    def __call__(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the tokens (B, N, C) with the box exchanged; a second call restores the original tokens."""
        inside = torch.zeros(grid, dtype=torch.bool, device=tokens.device)
        inside[self.top : self.bottom, self.left : self.right] = True
        return torch.where(inside.flatten()[:, None], flip_groups(tokens, self.group or len(tokens)), tokens)

    def own_share(self, num_tokens: int) -> float:
        """Return the fraction of an image's `num_tokens` tokens that are its own after the exchange."""
        return 1 - (self.bottom - self.top) * (self.right - self.left) / num_tokens


def flip_groups(array_B: Tensor, group: int) -> Tensor:
    """Reverse the order within every `group` consecutive entries of `array_B` (B, ...)."""
    return array_B.unflatten(0, (-1, group)).flip(1).flatten(0, 1)
