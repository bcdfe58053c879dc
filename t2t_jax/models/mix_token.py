"""MixToken (arXiv 2104.10858): exchange of a box of tokens between pairs of images.

Source: zihangJiang/TokenLabeling: tlt/models/lvvit.py. Twin: t2t_torch/models/mix_token.py.
Shapes: B batch, N tokens on a grid, C channels.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MixToken:
    """Box of the token grid in which every image takes its partner's tokens.

    `bottom` and `right` are exclusive. Partners are assigned within groups of `group` consecutive images
    (None for the whole batch): the partner of an image is at its position in the reversed group.
    """

    top: jax.Array | int
    bottom: jax.Array | int
    left: jax.Array | int
    right: jax.Array | int
    group: int | None = dataclasses.field(default=None, metadata={"static": True})

    def __call__(self, tokens_BxNxC: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """Return the tokens (B, N, C) with the box exchanged; a second call restores the original tokens."""
        rows_N, columns_N = (index.ravel() for index in jnp.mgrid[: grid[0], : grid[1]])
        inside_N = (rows_N >= self.top) & (rows_N < self.bottom) & (columns_N >= self.left) & (columns_N < self.right)
        partners_BxNxC = flip_groups(tokens_BxNxC, self.group or len(tokens_BxNxC))
        return jnp.where(inside_N[None, :, None], partners_BxNxC, tokens_BxNxC)

    def own_share(self, num_tokens: int) -> jax.Array | float:
        """Return the fraction of an image's `num_tokens` tokens that are its own after the exchange."""
        return 1 - (self.bottom - self.top) * (self.right - self.left) / num_tokens


def flip_groups(array_B: jax.Array, group: int) -> jax.Array:
    """Reverse the order within every `group` consecutive entries of `array_B` (B, ...)."""
    grouped = array_B.reshape(-1, group, *array_B.shape[1:])
    return grouped[:, ::-1].reshape(array_B.shape)
