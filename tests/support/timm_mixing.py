"""timm's draws, images and targets of mixup, cutmix and random erasing (tests/data/augment)."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def golden_arrays(prefix: str) -> dict[str, np.ndarray]:
    """Arrays of one golden case by their names."""
    with np.load(Path(__file__).parents[1] / "data" / "augment" / "mixing.npz") as stored:
        found = {name.removeprefix(f"{prefix}/"): stored[name] for name in stored if name.startswith(f"{prefix}/")}
    assert found, prefix
    return found


def golden_input(shape: tuple[int, ...]) -> np.ndarray:
    """The images that timm began with."""
    return np.random.RandomState(0).standard_normal(shape).astype(np.float32)
