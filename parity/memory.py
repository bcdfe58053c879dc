"""Memory given back to the system between stages, so that the peak is that of the largest stage, not of their sum."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys


def release() -> None:
    """Collects garbage and returns freed heap pages to the system."""
    gc.collect()
    trim()


def trim() -> None:
    """Returns freed heap pages to the system.

    glibc keeps freed blocks below 32 MiB in its arenas; the activations of a deep model are thousands of such.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another libc
            ctypes.CDLL("libc.so.6").malloc_trim(0)
