"""Values between Python and JSON: no infinities, nothing nested too deep, and dataclasses from what was written."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

MOST_NESTED = 50
"""Levels of dictionaries and lists in settings: Python's own writers end at some hundreds."""


def shallow(value: Any, most: int = MOST_NESTED) -> Any:
    """`value` with a note in place of dictionaries and lists that lie deeper than `most` levels."""
    if isinstance(value, Mapping | list | tuple) and most == 0:
        return f"(nested more than {MOST_NESTED} deep: left out)"
    if isinstance(value, Mapping):
        return {key: shallow(item, most - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [shallow(item, most - 1) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def finite(value: Any) -> Any:
    """JSON has no infinity and no NaN: those become strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def restored(cls: type[Any], fields: Mapping[str, Any]) -> Any:
    """An instance of the dataclass `cls` from its JSON: strings back to numbers, lists to tuples; "passed" is computed.

    Raises:
        ValueError, LookupError, TypeError: the fields are not those of `cls`, or of another type.
    """
    types = {field.name: str(field.type) for field in dataclasses.fields(cls)}
    return cls(**{name: typed(value, types[name]) for name, value in fields.items() if name != "passed"})


MOST_DOTS = 100
"""In the path of a module: deeper than any model, and not as deep as Python can go."""


def typed(value: Any, kind: str) -> Any:
    """`value`, of JSON, as a field of `kind`, which is its annotation: "str", "float | None", "tuple[int, ...]" ..."""
    if value is None and kind.endswith("| None"):
        return None
    if kind.startswith("tuple[") and isinstance(value, list):
        return tuple(typed(item, kind.removeprefix("tuple[").split(",")[0]) for item in value)
    if kind.startswith("float") and (type(value) in (int, float) or value in ("inf", "-inf", "nan")):
        return float(value)
    if kind.startswith("int") and type(value) is int:
        return value
    if kind.startswith("str") and isinstance(value, str) and value.count(".") <= MOST_DOTS:
        return value
    raise ValueError(f"{str(value)[:60]!r} in place of {kind}")
