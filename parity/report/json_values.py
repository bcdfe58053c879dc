"""Convert values between Python and JSON: non-finite numbers, deep nesting, and dataclasses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

MOST_NESTED = 50
"""Maximum nesting depth of dictionaries and lists in settings; Python's own writers fail at some hundreds."""


def shallow(value: Any, most: int = MOST_NESTED) -> Any:
    """Return `value` with dictionaries and lists nested deeper than `most` levels replaced by a note."""
    if isinstance(value, Mapping | list | tuple) and most == 0:
        return f"(nested more than {MOST_NESTED} deep: left out)"
    if isinstance(value, Mapping):
        return {key: shallow(item, most - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [shallow(item, most - 1) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def finite(value: Any) -> Any:
    """Return `value` with infinities and NaN, which JSON cannot represent, replaced by strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def restored(cls: type[Any], fields: Mapping[str, Any]) -> Any:
    """Create an instance of the dataclass `cls` from its JSON fields.

    Strings for non-finite numbers become floats, lists become tuples; "passed" is ignored since it is computed.

    Raises:
        ValueError, LookupError, TypeError: The fields or their types are not those of `cls`.
    """
    types = {field.name: str(field.type) for field in dataclasses.fields(cls)}
    return cls(**{name: typed(value, types[name]) for name, value in fields.items() if name != "passed"})


MOST_DOTS = 100
"""Maximum number of dots in a string such as a module path: above any model's depth, below Python's recursion limit."""


def typed(value: Any, kind: str) -> Any:
    """Convert a JSON `value` to a field with the annotation `kind`: "str", "float | None", "tuple[int, ...]", ...

    Raises:
        ValueError: The value does not have that type.
    """
    if value is None and kind.endswith("| None"):
        return None
    if kind.startswith("tuple[") and isinstance(value, list):
        return tuple(typed(item, kind.removeprefix("tuple[").split(",")[0]) for item in value)
    if kind.startswith("float") and (type(value) in (int, float) or value in ("inf", "-inf", "nan")):
        return float(value)
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind.startswith("int") and type(value) is int:
        return value
    if kind.startswith("str") and isinstance(value, str) and value.count(".") <= MOST_DOTS:
        return value
    raise ValueError(f"{str(value)[:60]!r} in place of {kind}")
