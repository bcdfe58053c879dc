"""Intermediate results of a model for one image, as arrays, and the quantities derived from them for drawing.

Shapes: N M tokens, P prefix tokens, C channels, H heads, h w grid of tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

PREFIX_TOKENS = ("class token", "distillation token")
"""Tokens before those of the image, in this order."""


@dataclasses.dataclass(frozen=True)
class Inside:
    """Intermediate results of a model for one image.

    Attributes:
        attention: block -> (H, N, M), softmax over M, for every block that has attention.
        stages: Layer of the T2T module -> its tokens (h, w, C), one after each soft split; empty without soft splits.
        positions: Position table (N, C).
        grid: Grid of the image's tokens, (h, w); N is P + h * w.
        num_prefix_tokens: P.
        logits: (num_classes,).
    """

    attention: Mapping[str, np.ndarray]
    stages: Mapping[str, np.ndarray]
    positions: np.ndarray
    grid: tuple[int, int]
    num_prefix_tokens: int
    logits: np.ndarray

    @property
    def prefix_tokens(self) -> tuple[str, ...]:
        """Names of the P tokens before those of the image."""
        return PREFIX_TOKENS[: self.num_prefix_tokens]

    @property
    def is_finite(self) -> bool:
        arrays = (*self.attention.values(), *self.stages.values(), self.positions, self.logits)
        return all(np.isfinite(array).all() for array in arrays)

    def on_grid(self, weights: np.ndarray) -> np.ndarray:
        """Select from the weights (..., N) of all tokens those of the image's tokens, (..., h, w)."""
        return weights[..., self.num_prefix_tokens :].reshape(*weights.shape[:-1], *self.grid)


def stage_grids(model: Any) -> dict[str, tuple[int, int]]:
    """Return the layers of the T2T module whose outputs are the tokens after each soft split, with their grids.

    Empty for a model without soft splits (ViT, DeiT).
    """
    if not hasattr(model, "tokens_to_token"):
        return {}
    module = model.tokens_to_token
    convolution = ("soft_split0", "soft_split1", "project")
    names = convolution if module.tokens_type == "convolution" else ("attention1", "attention2", "project")
    return dict(zip(names, module.grids, strict=True))


def covered_size(model: Any) -> tuple[int, int]:
    """Return height and width of the part of the image, from its upper left corner, that the model's tokens cover.

    Only whole patches count: ViT drops the remainder of a size that is not divisible by the patch size.
    """
    if not hasattr(model, "patch_embed"):
        return model.img_size
    rows, columns = (
        tokens * patch for tokens, patch in zip(model.grid_size, model.patch_embed.proj.kernel_size, strict=True)
    )
    return rows, columns


def rollout(attention: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Compute attention rollout (Abnar and Zuidema, arXiv 2005.00928, section 3): block -> (N, M) in float64.

    Entry (n, m) is the contribution of token m before the first block to token n after a block: the product, over the
    blocks so far, of A / 2 + I / 2, where A is the mean over heads and I represents the residual connection. Rows sum
    to one.
    """
    found: dict[str, np.ndarray] = {}
    total: np.ndarray | None = None
    for name, weights_HxNxM in attention.items():
        mean = weights_HxNxM.mean(axis=0, dtype=np.float64)
        step = (mean + np.eye(len(mean))) / 2
        total = step if total is None else step @ total
        found[name] = total
    return found


def position_similarity(positions_NxC: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return the cosine similarities of the image's position embeddings, (h, w, h, w) in float64, without prefix
    tokens."""
    height, width = grid
    table = positions_NxC[len(positions_NxC) - height * width :].astype(np.float64)
    lengths = np.linalg.norm(table, axis=1, keepdims=True)
    table = table / np.where(lengths > 0, lengths, 1)
    return (table @ table.T).reshape(*grid, *grid)


def liveliest_channels(tokens_hxwxC: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the `count` channels with the largest variance over the image, sorted."""
    spread = tokens_hxwxC.astype(np.float64).var(axis=(0, 1))
    return np.sort(np.argsort(-spread, kind="stable")[:count])
