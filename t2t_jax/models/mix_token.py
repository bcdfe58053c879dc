"""MixToken (arXiv 2104.10858): a box of tokens exchanged between pairs of images.

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
    """A box of the grid, which every image takes from its partner's tokens: its place in the flipped group.

    The second edge of each pair is not part of the box. `group` images, neighbours in the batch, find partners among
    themselves; None for the whole batch.
    """

    top: jax.Array | int
    bottom: jax.Array | int
    left: jax.Array | int
    right: jax.Array | int
    group: int | None = dataclasses.field(default=None, metadata={"static": True})

    def __call__(self, tokens_BxNxC: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """Tokens with the box exchanged; a second call brings all of them back."""
        rows_N, columns_N = (index.ravel() for index in jnp.mgrid[: grid[0], : grid[1]])
        inside_N = (rows_N >= self.top) & (rows_N < self.bottom) & (columns_N >= self.left) & (columns_N < self.right)
        partners_BxNxC = flip_groups(tokens_BxNxC, self.group or len(tokens_BxNxC))
        return jnp.where(inside_N[None, :, None], partners_BxNxC, tokens_BxNxC)

    def own_share(self, num_tokens: int) -> jax.Array | float:
        """Share of an image's `num_tokens` tokens that stay its own."""
        return 1 - (self.bottom - self.top) * (self.right - self.left) / num_tokens


def flip_groups(array_B: jax.Array, group: int) -> jax.Array:
    """`array_B`, (B, ...), with every `group` neighbours in the opposite order."""
    grouped = array_B.reshape(-1, group, *array_B.shape[1:])
    return grouped[:, ::-1].reshape(array_B.shape)
