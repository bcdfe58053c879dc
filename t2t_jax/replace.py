"""A folder put in the place of another in one step, which `os.replace` does for files only."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
_RENAME_SWAP = 2  # sys/stdio.h of macOS


def exchange(one: Path, other: Path) -> None:
    """Swaps the names of two folders, so that whoever looks, or a crash, finds one or the other under each.

    Linux and macOS do it in one step. Where neither they nor the file system can, there is a moment between two
    renames.
    """
    if not _exchanged(os.fsencode(one), os.fsencode(other)):
        aside = one.with_name(f"{one.name}-aside")
        other.rename(aside)
        one.rename(other)
        aside.rename(one)


def _exchanged(one: bytes, other: bytes) -> bool:
    try:
        libc = ctypes.CDLL(None)
        if sys.platform == "linux":
            return libc.renameat2(_AT_FDCWD, one, _AT_FDCWD, other, _RENAME_EXCHANGE) == 0
        if sys.platform == "darwin":
            return libc.renamex_np(one, other, _RENAME_SWAP) == 0
    except (OSError, AttributeError, TypeError):  # an older libc, or Windows
        pass
    return False
