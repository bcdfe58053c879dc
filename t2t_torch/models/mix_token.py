"""MixToken (arXiv 2104.10858): a box of tokens exchanged between pairs of images.

Source: zihangJiang/TokenLabeling: tlt/models/lvvit.py. Twin: t2t_jax/models/mix_token.py.
Shapes: B batch, N tokens on a grid, C channels.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class MixToken:
    """A box of the grid, which every image takes from its partner's tokens: its place in the flipped group.

    The second edge of each pair is not part of the box. `group` images, neighbours in the batch, find partners among
    themselves; None for the whole batch.
    """

    top: int
    bottom: int
    left: int
    right: int
    group: int | None = None

    def __call__(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (B, N, C) with the box exchanged; a second call brings all of them back."""
        inside = torch.zeros(grid, dtype=torch.bool, device=tokens.device)
        inside[self.top : self.bottom, self.left : self.right] = True
        return torch.where(inside.flatten()[:, None], flip_groups(tokens, self.group or len(tokens)), tokens)

    def own_share(self, num_tokens: int) -> float:
        """Share of an image's `num_tokens` tokens that stay its own."""
        return 1 - (self.bottom - self.top) * (self.right - self.left) / num_tokens


def flip_groups(array_B: Tensor, group: int) -> Tensor:
    """`array_B`, (B, ...), with every `group` neighbours in the opposite order."""
    return array_B.unflatten(0, (-1, group)).flip(1).flatten(0, 1)
