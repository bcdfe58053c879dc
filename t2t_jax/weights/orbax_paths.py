"""Substitute paths that Orbax misinterprets.

Orbax treats `[ ] * ?` in a folder name as a glob pattern: in `try[1]` it did not find the files it had just written and
lost them silently. It converts backslashes to slashes, and treats `gs:` as remote storage.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax

_MISREAD = re.compile(r"[\[\]*?\\]|:(/|$)")


def is_plain(path: Path) -> bool:
    """Return whether Orbax interprets `path` literally."""
    try:
        str(path).encode()
    except UnicodeEncodeError:  # not valid UTF-8
        return False
    return _MISREAD.search(str(path)) is None


@contextlib.contextmanager
def plain_path(folder: Path) -> Iterator[Path]:
    """Yield a path of the existing `folder` that Orbax interprets literally: itself, or a temporary symbolic link.

    Raises:
        ValueError: `folder` needs a link, but several processes write together and must use the same path.
    """
    if is_plain(folder):
        yield folder
        return
    if jax.process_count() > 1:
        raise ValueError(f"several processes cannot use {folder}: choose a name without [ ] * ? and backslashes")
    places = [place for place in (tempfile.gettempdir(), "/tmp", "/var/tmp") if is_plain(Path(place))]
    with tempfile.TemporaryDirectory(dir=places[0], prefix="t2t-", ignore_cleanup_errors=True) as scratch:
        link = Path(scratch, "link")
        link.symlink_to(folder)
        yield link
