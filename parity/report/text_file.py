"""A text written to a file: whole or not at all.

`t2t_common.io.files` does this for the models; the proof is used without them, and imports none of their packages.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def saved(text: str, path: str | Path | None) -> str:
    """`text`, also written to `path` as UTF-8 if that is given, in place of what is there: a link is not followed.

    Raises:
        FileNotFoundError: the folder of `path` is not there.
        ValueError: a folder, a device or a pipe is there, or it cannot be written; what was there stays.
    """
    if path is None:
        return text
    path = Path(path)
    folder = path.absolute().parent
    if path.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder, give the name of a file")
    if path.exists() and not path.is_file():
        raise ValueError(f"cannot write {path}: it is a device or a pipe, which a file would replace")
    if not folder.is_dir():
        raise FileNotFoundError(f"cannot write {path}: create the folder {folder} first")
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{path.name}.") as scratch:
            temporary = Path(scratch, path.name)
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())  # or a power cut could leave the new name without the content
            temporary.replace(path)
    except OSError as error:
        raise ValueError(f"cannot write {path} ({error.strerror or error}): free space, or choose another") from error
    return text
