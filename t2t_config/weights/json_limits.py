"""JSON of strangers: brackets in brackets in brackets are refused before anybody walks through them."""

from __future__ import annotations

import json
from typing import Any

MAX_DEPTH = 100
"""Lists and objects within each other. The parser takes thousands, whoever copies or writes them again fails at 300."""


def parse(text: str | bytes) -> Any:
    """What the JSON `text` says; NaN and infinities as Python's json has them.

    Raises:
        ValueError: no JSON, or deeper than `MAX_DEPTH`.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"brackets within brackets, more than {MAX_DEPTH} deep") from None
    check_depth(value)
    return value


def check_depth(value: Any) -> None:
    """Raises ValueError if lists, tuples, sets and dictionaries lie in each other deeper than `MAX_DEPTH`."""
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, dict | list | tuple | set)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"brackets within brackets, more than {MAX_DEPTH} deep")
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
