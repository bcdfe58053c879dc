"""The tensors that a model returns, by name, in either framework and without importing one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any


def named(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (name, tensor) for each tensor of an output: "" for a single one, else "logits", "states[0]" and so on.

    Mappings, named tuples and dataclasses are ordered by the names of their items; None and numbers are left out.
    """
    if isinstance(tree, Mapping):
        items = {str(key): value for key, value in tree.items()}
    elif hasattr(tree, "_asdict"):
        items = tree._asdict()
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type) and not hasattr(tree, "dtype"):
        items = {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
    elif isinstance(tree, tuple | list):
        for i, value in enumerate(tree):
            yield from named(value, f"{name}[{i}]")
        return
    else:
        if hasattr(tree, "shape") and hasattr(tree, "dtype"):
            yield name, tree
        return
    for key in sorted(items):
        yield from named(items[key], f"{name}.{key}" if name else key)
