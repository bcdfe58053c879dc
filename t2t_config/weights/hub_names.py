"""Validation of names sent by a hub, as huggingface_hub uses them unchecked as path components in its cache."""

from __future__ import annotations

import contextlib
import functools
import re
import threading
from collections.abc import Iterator
from typing import Any

from t2t_config.text import readable

_PLAIN = re.compile(r"[0-9A-Za-z][0-9A-Za-z._+=-]{0,199}")
"""Valid names; usually these are the digits of a SHA-1 or SHA-256."""
_COMMIT = "X-Repo-Commit"
_LOCK = threading.RLock()


@contextlib.contextmanager
def plain_names(hub: Any) -> Iterator[None]:
    """Context manager that rejects commits and ETags from the hub unless they are plain file names.

    A commit of `../../..` would be a folder outside of huggingface_hub's cache, in which files chosen by the server
    would be created. All names come with the response to the request for a file's metadata, even if the file does not
    exist.

    Raises:
        ValueError: If a name is invalid, before it is used.
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
        raise ValueError(f"the hub's {kind} {readable(name)!r} is not a file name, so it is refused")
