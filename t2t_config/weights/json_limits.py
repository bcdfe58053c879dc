"""Parsing of untrusted JSON with limited nesting depth."""

from __future__ import annotations

import json
from typing import Any

MAX_DEPTH = 100
"""Maximum nesting depth of lists and objects. The parser accepts thousands; code that copies or writes fails at 300."""


def parse(text: str | bytes) -> Any:
    """Parse the JSON `text`; NaN and infinities are handled as in Python's json.

    Raises:
        ValueError: If the text is not JSON, or is nested deeper than `MAX_DEPTH`.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep") from None
    check_depth(value)
    return value


def check_depth(value: Any) -> None:
    """Raise ValueError if lists, tuples, sets and dictionaries are nested deeper than `MAX_DEPTH`."""
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, dict | list | tuple | set)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
