"""How many images go through a model at once on a CPU."""

from __future__ import annotations

import math
import os

PIXELS_A_CORE = 2 * 224 * 224
"""Of the images that are computed at once: what lies between a model's layers then stays in the caches, and there are
still tokens enough for the products to run at full speed. Of 2, 4, 8 and 16 images 4 were the fastest on 2 cores in
t2t_jax; in PyTorch it shows with large batches."""


def cached_parts(batch: int, height: int, width: int, *, cores: int) -> int:
    """The number of equal parts in which a CPU should compute `batch` images of height x width pixels.

    Each part has at most two images of 224 x 224 for each core, and more than half of that: smaller products would lose
    what the caches gain. Where no such part divides the batch, as of 17 images, it stays together.
    """
    most = math.ceil(PIXELS_A_CORE * cores / max(height * width, 1))
    if batch <= most:
        return 1
    size = max(size for size in range(1, most + 1) if batch % size == 0)
    return batch // size if 2 * size > most else 1


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
