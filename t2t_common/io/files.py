"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def check_target(path: Path) -> None:
    """Raises before the work is done if no file can be written at `path`.

    Raises:
        ValueError: a folder, a device or a pipe is there.
        FileNotFoundError: its folder is not there.
    """
    if path.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder, give the name of a file")
    if path.exists() and not path.is_file():
        raise ValueError(f"cannot write {path}: it is a device or a pipe, which a file would replace")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: create the folder {path.absolute().parent} first")


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """A name in a scratch folder beside `path`; the file written there takes its place, unless the body raises.

    Raises:
        ValueError: it cannot be written; an older file at `path` stays.
    """
    check_target(path)
    try:
        with tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=f".{path.name}.") as scratch:
            temporary = Path(scratch, path.name)
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())  # or a power cut could leave the new name without the content
            temporary.replace(path)
    except OSError as error:
        raise ValueError(f"cannot write {path} ({error.strerror or error}): free space, or choose another") from error


def write_text(path: Path, text: str) -> None:
    """Writes `path` as UTF-8, whole or not at all; lone surrogates are escaped. Raises as `replace_file`."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def ensure_writable(folder: str | Path) -> Path:
    """Creates `folder` if need be and proves that files can be written there.

    Raises:
        ValueError: they cannot; the message says why.
    """
    folder = Path(folder).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise ValueError(f"cannot write to {folder} ({error.strerror}): choose another folder") from error
