"""Atomic file writes: a file is either complete or absent."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


def check_target(path: Path | None) -> None:
    """Raise an error, before any work is done, if no file can be written at `path`; None stands for no file.

    Raises:
        ValueError: If `path` is a folder, a device or a pipe.
        FileNotFoundError: If its parent folder does not exist.
    """
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder, give the name of a file")
    if path.exists() and not path.is_file():
        raise ValueError(f"cannot write {path}: it is a device or a pipe, which a file would replace")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: create the folder {path.absolute().parent} first")


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Context manager that yields a temporary path; the file written there replaces `path` unless the body raises.

    Raises:
        ValueError: If the file cannot be written; an existing file at `path` is kept.
    """
    check_target(path)
    try:
        with tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=f".{path.name}.") as scratch:
            temporary = Path(scratch, path.name)
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())  # otherwise a power failure could leave the new name without the content
            temporary.replace(path)
    except OSError as error:
        raise ValueError(f"cannot write {path} ({error.strerror or error}): free space, or choose another") from error


def write_text(path: Path, text: str) -> None:
    """Write `path` atomically as UTF-8, with lone surrogates escaped; raises as `replace_file`."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path | None, value: Any) -> None:
    """Write `value` to `path` as JSON, if a path is given; raises as `replace_file`."""
    if path is not None:
        write_text(path, json.dumps(value, indent=1) + "\n")


def same_file(file: IO[Any], path: Path) -> bool:
    """Return whether `path` is still the open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except OSError:
        return False


def ensure_writable(folder: str | Path) -> Path:
    """Create `folder` if it does not exist and check that files can be written there.

    Raises:
        ValueError: If they cannot; the message gives the reason.
    """
    folder = Path(folder).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise ValueError(f"cannot write to {folder} ({error.strerror}): choose another folder") from error
