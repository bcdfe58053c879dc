"""Release memory to the system between stages, so that the peak is that of the largest stage, not of their sum."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from pathlib import Path

WORTH_BYTES = 128 * 2**20
"""Minimum growth of the process to collect garbage: it takes half a second once PyTorch and JAX are imported."""


class _Kept:
    """Resident bytes after the last collection."""

    bytes = 0


def release() -> None:
    """Collect garbage and return freed heap pages to the system, if the process has grown since the last collection.

    Always collects on systems that do not report a process's memory.
    """
    if (held := resident_bytes()) is None or held - _Kept.bytes >= WORTH_BYTES:
        gc.collect()
        trim()
        _Kept.bytes = resident_bytes() or 0


def resident_bytes() -> int | None:
    """Return the resident memory of this process in bytes; None if the system does not report it (not Linux)."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def trim() -> None:
    """Return freed heap pages to the system.

    glibc keeps freed blocks below 32 MiB in its arenas; a deep model has thousands of activations below that size.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another libc
            ctypes.CDLL("libc.so.6").malloc_trim(0)
