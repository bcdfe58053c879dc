"""Size arithmetic shared by both frameworks: token grids, stochastic depth rates, model sizes from tensor shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

SOFT_SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))
"""Kernel, stride and padding of the three soft splits (T2T-ViT paper, section 3.1)."""


def to_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return `size` as (height, width); a single number means a square."""
    height, width = size if isinstance(size, tuple | list) else (size, size)
    return int(height), int(width)


def soft_split_grids(img_size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Return the token grid (height, width) after each soft split, for any image size, divisible by 16 or not.

    Upstream assumes img_size // 16, which is correct only for multiples of 16; the general formula for a sliding window
    is (size + 2 * padding - kernel) // stride + 1.

    Raises:
        ValueError: If the images are too small for the first kernel.
    """
    grids, sides = [], img_size
    for kernel, stride, padding in SOFT_SPLITS:
        height, width = ((side + 2 * padding - kernel) // stride + 1 for side in sides)
        grids.append((height, width))
        sides = grids[-1]
    if min(grids[0]) < 1:
        raise ValueError(f"img_size {img_size[0]}x{img_size[1]} is too small: at least 3 pixels each way are needed")
    return tuple(grids)


def patch_grid(img_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Return the patch grid (height, width); as in timm, a remainder of the size by `patch_size` is dropped.

    Raises:
        ValueError: If the images are smaller than one patch.
    """
    grid = (img_size[0] // patch_size, img_size[1] // patch_size)
    if min(grid) < 1:
        raise ValueError(f"img_size {img_size[0]}x{img_size[1]} is smaller than one patch of {patch_size} pixels")
    return grid


def token_grid(img_size: int | tuple[int, int], patch_size: int | None = None) -> tuple[int, int]:
    """Return the grid (height, width) of a position table: of `patch_size` patches, or (None) after the soft splits."""
    size = to_pair(img_size)
    return soft_split_grids(size)[-1] if patch_size is None else patch_grid(size, patch_size)


def saved_grid(img_size: Any, positions: int, patch_size: int | None = None) -> tuple[int, int] | None:
    """Return the grid of a saved table of `positions` from the `img_size` saved with it; None if the two disagree."""
    try:
        grid = token_grid(img_size, patch_size)
    except (TypeError, ValueError, OverflowError):
        return None
    return grid if grid[0] * grid[1] == positions else None


def drop_path_rates(drop_path_rate: float, depth: int) -> list[float]:
    """Return the stochastic depth rates: `depth` values from 0 to `drop_path_rate`, linearly spaced.

    Raises:
        ValueError: If `drop_path_rate` is not a probability.
    """
    if not 0 <= drop_path_rate <= 1:
        raise ValueError(f"drop_path_rate {drop_path_rate} is not a probability: give a number from 0 to 1")
    return [drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]


def sizes_of(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Derive the model's sizes from the shapes of an official state dict.

    Always returns `num_classes`; `in_chans`, (square) `img_size` and `aux_head` where they can be determined.
    """
    axes = {"head": 2, "patch_embed.proj": 4, "tokens_to_token.soft_split0": 4, "tokens_to_token.attention1.norm1": 1}
    named = {f"{name}.weight": count for name, count in axes.items()} | {"pos_embed": 3}
    known = {name: shapes[name] for name, count in named.items() if len(shapes.get(name, ())) == count}
    sizes: dict[str, Any] = {"num_classes": known["head.weight"][0] if "head.weight" in known else 0}
    patch = 16
    if "patch_embed.proj.weight" in known:
        sizes["in_chans"] = known["patch_embed.proj.weight"][1]
        patch = known["patch_embed.proj.weight"][-1]
    elif "tokens_to_token.soft_split0.weight" in known:
        sizes["in_chans"] = known["tokens_to_token.soft_split0.weight"][1]
    elif "tokens_to_token.attention1.norm1.weight" in known:
        sizes["in_chans"] = known["tokens_to_token.attention1.norm1.weight"][0] // 49
    if "pos_embed" in known:
        positions = max(0, known["pos_embed"][1] - (2 if "dist_token" in shapes else 1))
        side = math.isqrt(positions)
        if side * side == positions > 0:
            sizes["img_size"] = side * patch
    if "aux_head.weight" in shapes:
        sizes["aux_head"] = True
    return sizes
