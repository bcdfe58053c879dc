"""Help texts of options: placeholders such as FILE, DIR and NAME instead of types, and no line breaks of the source."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Annotated, Any

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

NAMES = {
    **dict.fromkeys(("html", "json", "junit", "classes", "hlo", "case"), "FILE"),
    **dict.fromkeys(("workdir", "token_labels", "write"), "DIR"),
    **dict.fromkeys(("checkpoint", "init_from"), "FILE|DIR"),
    **dict.fromkeys(("model", "name", "recipe", "topology"), "NAME"),
    **dict.fromkeys(("names", "frozen"), "NAME ..."),
    "auto_augment": "POLICY",
    "data": "digits|DIR",
    "distributed": "HOST:PORT,COUNT,INDEX",
    "images": "IMAGE ...",
    "img_size": "PIXELS",
    "mesh": "AXIS=N,...",
    "out": "OUT",
    "source": "SRC",
    "target": "DST",
}
"""Field name -> placeholder of its value, in all commands."""


def registry() -> ConstructorRegistry:
    """Return tyro's registry with rules that give the fields of dataclasses readable help texts."""
    rules = ConstructorRegistry()
    asked: list[Any] = []

    @rules.struct_rule
    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        if not dataclasses.is_dataclass(info.type) or info.type in asked:
            return None
        asked.append(info.type)  # calls tyro's own rule below, not this one again
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            asked.pop()
        if not isinstance(spec, StructConstructorSpec):
            return None
        return dataclasses.replace(spec, fields=tuple(map(_named, spec.fields)))

    return rules


def _named(field: StructFieldSpec) -> StructFieldSpec:
    field = dataclasses.replace(field, helptext=_one_line(field.helptext))
    found = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(field.type, set()))
    if not isinstance(found, PrimitiveConstructorSpec) or found.metavar == "{True,False}":
        return field
    name = NAMES.get(field.name) or readable(found.metavar)
    name += " [PIXELS]" if name == "PIXELS" and found.nargs != 1 else ""  # or height and width
    hint = "(default: none)" if field.default == () else None
    kind: Any = Annotated[field.type, tyro.conf.arg(metavar=name, help_behavior_hint=hint)]
    return dataclasses.replace(field, type=kind)


def _one_line(text: str | Callable[[], str | None] | None) -> Callable[[], str | None]:
    """Return a function that returns the help text without line breaks; as in tyro, it may be a function itself."""

    def joined() -> str | None:
        found = text() if callable(text) else text
        return None if found is None else " ".join(found.split())

    return joined


def readable(metavar: str) -> str:
    """Simplify a metavar: `{None}|{[FLOAT [FLOAT ...]]}` becomes FLOAT ...; None is left out."""
    text = metavar.replace("{None}|", "").replace("{None,", "{")
    text = re.sub(r"\{?\[(\{[^}]*\}|\w+) \[\1 \.\.\.\]\]\}?", r"\1 ...", text)
    return text.replace("PATH", "FILE|DIR").replace("STR", "TEXT")
