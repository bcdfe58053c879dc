"""Write text to a file atomically."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def saved(text: str, path: str | Path | None) -> str:
    """Return `text`, and write it to `path` as UTF-8 if given.

    An existing file is replaced; a symbolic link is replaced rather than followed.

    Raises:
        FileNotFoundError: The folder of `path` does not exist.
        ValueError: `path` is a folder, a device or a pipe, or cannot be written; an existing file is unchanged.
    """
    if path is None:
        return text
    path = Path(path)
    check_target(path)
    try:
        with tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=f".{path.name}.") as scratch:
            temporary = Path(scratch, path.name)
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())  # or a power failure could leave an empty file under the new name
            temporary.replace(path)
    except OSError as error:
        raise ValueError(f"cannot write {path} ({error.strerror or error}): free space, or choose another") from error
    return text


def check_target(path: Path) -> None:
    """Raise an error, before any work is done, if no file can be written at `path`.

    Raises:
        FileNotFoundError: The folder of `path` does not exist.
        ValueError: `path` is a folder, a device or a pipe.
    """
    if path.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder, give the name of a file")
    if path.exists() and not path.is_file():
        raise ValueError(f"cannot write {path}: it is a device or a pipe, which a file would replace")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: create the folder {path.absolute().parent} first")
