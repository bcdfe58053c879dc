"""Replace a folder by another one atomically, which `os.replace` supports only for files.

Orbax deletes a folder before it writes it anew, so that a full disk or a kill leaves none
(tests/jax/training/test_orbax_checkpointer.py).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from pathlib import Path

ASIDE = ".aside-"
"""Prefix of the temporary name of a folder, in the same directory, while it is being replaced."""

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
_RENAME_SWAP = 2  # sys/stdio.h of macOS


def exchange(one: Path, other: Path) -> None:
    """Swap the names of two folders, so that each name always refers to one of them, even after a crash.

    This is atomic on Linux and macOS. If the system or file system does not support it, there is a moment between two
    renames in which `other` exists only at `set_aside(other)`; after a crash, `recover` restores its name.

    Raises:
        OSError: `one` cannot replace `other`; both are unchanged.
    """
    if not _exchanged(os.fsencode(one), os.fsencode(other)):
        aside = set_aside(other)
        other.rename(aside)
        try:
            one.rename(other)
        except BaseException:
            aside.rename(other)
            raise
        aside.rename(one)


def set_aside(path: Path) -> Path:
    """Return the temporary path at which `exchange` keeps the folder `path`."""
    return path.with_name(f"{ASIDE}{path.name}")


def recover(path: Path) -> None:
    """Undo or complete an `exchange` of the folder `path` that was interrupted. Only for processes that write there.

    Raises:
        OSError: The temporary folder cannot be renamed.
    """
    aside = set_aside(path)
    if path.exists():
        shutil.rmtree(aside, ignore_errors=True)
    elif aside.is_dir():
        aside.rename(path)


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
