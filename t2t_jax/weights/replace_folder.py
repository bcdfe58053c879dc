"""A folder put in the place of another in one step, which `os.replace` does for files only."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from pathlib import Path

ASIDE = ".aside-"
"""Begins the name, beside a folder, under which it waits until another has taken its place."""

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
_RENAME_SWAP = 2  # sys/stdio.h of macOS


def exchange(one: Path, other: Path) -> None:
    """Swaps the names of two folders, so that whoever looks, or a crash, finds one or the other under each.

    Linux and macOS do it in one step. Where neither they nor the file system can, there is a moment between two
    renames, in which `other` is at `set_aside(other)` only; after a crash, `recover` gives it its name again.

    Raises:
        OSError: `one` cannot take the place of `other`; both are where they were.
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
    """Where `exchange` keeps the folder at `path` for a moment."""
    return path.with_name(f"{ASIDE}{path.name}")


def recover(path: Path) -> None:
    """Undoes, or ends, what an `exchange` that died left of the folder at `path`. Only for who writes there.

    Raises:
        OSError: the folder set aside cannot be renamed.
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
