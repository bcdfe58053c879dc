"""Placeholders for option values in help texts: FILE, DIR, NAME instead of the types of the fields."""

from __future__ import annotations

import dataclasses
import re
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
    **dict.fromkeys(("checkpoint", "init_from", "source", "target"), "FILE|DIR"),
    **dict.fromkeys(("model", "name", "recipe", "topology"), "NAME"),
    **dict.fromkeys(("names", "frozen"), "NAME ..."),
    "auto_augment": "POLICY",
    "data": "digits|DIR",
    "distributed": "HOST:PORT,COUNT,INDEX",
    "images": "IMAGE ...",
    "img_size": "PIXELS",
    "mesh": "AXIS=N,...",
}
"""Field name -> placeholder of its value, in all commands."""


def registry() -> ConstructorRegistry:
    """Return tyro's registry with rules that give the fields of dataclasses readable placeholders."""
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
    found = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(field.type, set()))
    if not isinstance(found, PrimitiveConstructorSpec) or found.metavar == "{True,False}":
        return field
    name = NAMES.get(field.name) or readable(found.metavar)
    name += " [PIXELS]" if name == "PIXELS" and found.nargs != 1 else ""  # or height and width
    kind: Any = Annotated[field.type, tyro.conf.arg(metavar=name)]
    return dataclasses.replace(field, type=kind)


def readable(metavar: str) -> str:
    """Simplify a metavar: `{None}|{[FLOAT [FLOAT ...]]}` becomes FLOAT ...; None is left out."""
    text = metavar.replace("{None}|", "").replace("{None,", "{")
    text = re.sub(r"\{?\[(\{[^}]*\}|\w+) \[\1 \.\.\.\]\]\}?", r"\1 ...", text)
    return text.replace("PATH", "FILE|DIR").replace("STR", "TEXT")
