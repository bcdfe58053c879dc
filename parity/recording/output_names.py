"""Names for outputs that have names on the other side only: they are aligned by order."""

from __future__ import annotations

import collections
import keyword
from typing import Any

from parity.recording.structure import NAMED, Form, node


def with_names(tree: Any, like: Form) -> Any:
    """Return `tree` with named tuples in place of the sequences that are mappings or records in `like`.

    Items that are not None take the names in their declared order. A sequence stays as it is if the numbers of items
    differ, or if a name cannot be an attribute.
    """
    own = node(tree)
    if own is None or like.kind not in (*NAMED, "sequence"):
        return tree
    parts = dict(like.parts)
    if own.kind == "sequence" and like.kind in NAMED:
        present = [i for i, value in enumerate(own.values) if value is not None]
        names = dict(zip(present, like.declared, strict=False))
        if len(present) != len(like.declared) or not all(map(_is_attribute, like.declared)):
            return tree
        values = [with_names(x, parts[names[i]]) if i in names else None for i, x in enumerate(own.values)]
        fields = [names.get(i, f"none_{i}") for i in range(len(values))]
        outputs: Any = collections.namedtuple("Outputs", fields)  # type: ignore[misc]
        return outputs(*values)
    if own.kind == "sequence" or like.kind == "sequence":
        present = [i for i, value in enumerate(own.values) if value is not None]
        inner = [part for _, part in like.parts if part.kind != "None"]
        if own.kind != like.kind or len(present) != len(inner):
            return tree
        by_place = dict(zip(present, inner, strict=True))
        return own.rebuild([with_names(x, by_place[i]) if i in by_place else x for i, x in enumerate(own.values)])
    pairs = zip(own.names, own.values, strict=True)
    return own.rebuild([with_names(x, parts[name]) if name in parts else x for name, x in pairs])


def _is_attribute(name: Any) -> bool:
    return isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name) and not name.startswith("_")


def aligned_by_order(ours: Form, theirs: Form) -> bool:
    """Return whether some outputs have names on one side only."""
    if (ours.kind in NAMED) != (theirs.kind in NAMED):
        return True
    if ours.kind in NAMED:
        parts = dict(theirs.parts)
        return any(aligned_by_order(part, parts[name]) for name, part in ours.parts if name in parts)
    return any(aligned_by_order(a, b) for (_, a), (_, b) in zip(ours.present, theirs.present, strict=False))


def tensor_names(form: Form, before: str = "") -> list[str]:
    """Return the name of every tensor of an output, in order: "logits", "states[0]"; "" if it is the output itself."""
    if form.kind == "tensor":
        return [before]
    found = []
    for name, part in form.parts:
        dotted = form.kind in NAMED and isinstance(name, str)
        found += tensor_names(part, f"{before}.{name}".strip(".") if dotted else f"{before}[{name!r}]")
    return found
