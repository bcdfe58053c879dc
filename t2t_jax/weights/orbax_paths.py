"""Paths that Orbax would misread, given to it by another name.

Orbax takes `[ ] * ?` in a folder's name for patterns: in `try[1]` it found none of the files it had just written, lost
them and said nothing. A backslash becomes a slash for it, `gs:` another machine.
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
    """Whether Orbax takes `path` for what it is."""
    try:
        str(path).encode()
    except UnicodeEncodeError:  # bytes that are no text
        return False
    return _MISREAD.search(str(path)) is None


@contextlib.contextmanager
def plain_path(folder: Path) -> Iterator[Path]:
    """A name of the existing `folder` that Orbax does not misread: itself, or a link among the temporary files.

    Raises:
        ValueError: no such name can be made; or several processes write together, which have to use the same.
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
