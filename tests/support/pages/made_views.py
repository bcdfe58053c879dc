"""A model's inside made by hand: two blocks of two heads over an image of 2 x 3 tokens."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from t2t_common.visualize import Inside


def inside(num_prefix_tokens: int = 1, grid: tuple[int, int] = (2, 3), **changes: Any) -> Inside:
    draw = np.random.RandomState(0)
    tokens = num_prefix_tokens + grid[0] * grid[1]
    weights = draw.uniform(size=(2, 2, tokens, tokens)) ** 3
    weights /= weights.sum(axis=-1, keepdims=True)
    made = Inside(
        attention={f"blocks.{i}": block.astype(np.float32) for i, block in enumerate(weights)},
        stages={
            "attention1": draw.standard_normal((8, 12, 8)),
            "attention2": draw.standard_normal((4, 6, 8)),
            "project": draw.standard_normal((*grid, 16)),
        },
        positions=draw.standard_normal((tokens, 16)),
        grid=grid,
        num_prefix_tokens=num_prefix_tokens,
        logits=draw.standard_normal(5),
    )
    return dataclasses.replace(made, **changes)
