"""Names that a hub gives to what is downloaded: huggingface_hub makes paths of its cache of them, whatever they are."""

from __future__ import annotations

import contextlib
import functools
import re
import threading
from collections.abc import Iterator
from typing import Any

from t2t_config.text import readable

_PLAIN = re.compile(r"[0-9A-Za-z][0-9A-Za-z._+=-]{0,199}")
"""Usual are the digits of SHA-1 and SHA-256."""
_COMMIT = "X-Repo-Commit"
_LOCK = threading.RLock()


@contextlib.contextmanager
def plain_names(hub: Any) -> Iterator[None]:
    """While it lasts, the commits and ETags that huggingface_hub is told name a file in one folder, and no other.

    A commit of `../../..` would be a folder outside of its cache, where it creates what the server says. Every name
    comes in the answer to the question for a file's metadata, also where there is no such file.

    Raises:
        ValueError: another name, in place of what is done with it.
    """
    module = hub.file_download
    with _LOCK:
        ask = module.get_hf_file_metadata

        @functools.wraps(ask)
        def checked(*args: Any, **kwargs: Any) -> Any:
            try:
                found = ask(*args, **kwargs)
            except Exception as error:
                headers = getattr(getattr(error, "response", None), "headers", {})
                _check("commit", headers.get(_COMMIT))
                raise
            _check("commit", found.commit_hash)
            _check("ETag", found.etag)
            _check("digest", getattr(getattr(found, "xet_file_data", None), "file_hash", None))
            return found

        module.get_hf_file_metadata = checked
        try:
            yield
        finally:
            module.get_hf_file_metadata = ask


def _check(kind: str, name: str | None) -> None:
    if name is not None and not _PLAIN.fullmatch(name):
        raise ValueError(f"the hub's {kind} {readable(name)!r} is no name of a file, so it is refused")
