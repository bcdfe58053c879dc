"""Number of images to process at a time on a CPU."""

from __future__ import annotations

import math
import os

PIXELS_A_CORE = 2 * 224 * 224
"""Maximum input pixels per core to process at a time: activations then fit in the caches, and there are still enough
tokens for matrix products to run at full speed. Of 2, 4, 8 and 16 images, 4 were the fastest on 2 cores in t2t_jax; in
PyTorch the effect shows with large batches."""


def num_chunks(batch: int, height: int, width: int, *, cores: int) -> int:
    """Return the number of equal parts into which a CPU should split `batch` images of height x width pixels.

    Each part has at most the pixels of two 224 x 224 images per core, and more than half of that, since smaller matrix
    products would lose what the caches gain. If no such part divides the batch, e.g. 17 images, it is not split.
    """
    most = math.ceil(PIXELS_A_CORE * cores / max(height * width, 1))
    if batch <= most:
        return 1
    size = max(size for size in range(1, most + 1) if batch % size == 0)
    return batch // size if 2 * size > most else 1


def available_cores() -> int:
    """Return the number of cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
