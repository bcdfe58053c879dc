"""Arithmetic of sizes that both frameworks share: token grids, stochastic depth rates."""

from __future__ import annotations

SOFT_SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))
"""Kernel, stride and padding of the three soft splits (T2T-ViT paper, section 3.1)."""


def to_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """`size` as (height, width); one number means a square."""
    height, width = size if isinstance(size, tuple | list) else (size, size)
    return int(height), int(width)


def soft_split_grids(img_size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Token grid (height, width) after each soft split; any size works, divisible by 16 or not.

    Upstream assumes img_size // 16, which is right only for multiples of 16; the rule of a sliding window is
    (size + 2 * padding - kernel) // stride + 1.

    Raises:
        ValueError: images too small for the first kernel.
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
    """Patch grid (height, width); as in timm, what is left of a size that `patch_size` does not divide is dropped.

    Raises:
        ValueError: images smaller than one patch.
    """
    grid = (img_size[0] // patch_size, img_size[1] // patch_size)
    if min(grid) < 1:
        raise ValueError(f"img_size {img_size[0]}x{img_size[1]} is smaller than one patch of {patch_size} pixels")
    return grid


def drop_path_rates(drop_path_rate: float, depth: int) -> list[float]:
    """The stochastic depth decay rule: `depth` rates from 0 to `drop_path_rate`, linearly.

    Raises:
        ValueError: not a probability.
    """
    if not 0 <= drop_path_rate <= 1:
        raise ValueError(f"drop_path_rate {drop_path_rate} is not a probability: give a number from 0 to 1")
    return [drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
