"""Build HTML and SVG by function calls. All text is escaped, so no name can break a page."""

from __future__ import annotations

import html
from collections.abc import Iterable

VOID = ("br", "meta")
"""Elements without an end tag."""


class Markup(str):
    """A string that is already HTML and is not escaped again."""

    __slots__ = ()


def tag(element: str, *children: str, **attributes: str | float | bool | None) -> Markup:
    """Return one element.

    In attribute names `class_` stands for class and `_` for `-`. None and False omit an attribute, True writes it
    without a value.
    """
    written = []
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        key = name.rstrip("_").replace("_", "-")
        written.append(f" {key}" if value is True else f' {key}="{html.escape(_text(value))}"')
    start = f"<{element}{''.join(written)}>"
    return Markup(start if element in VOID else f"{start}{join(children)}</{element}>")


def join(children: Iterable[str]) -> Markup:
    """Concatenate children; plain text is escaped."""
    return Markup(
        "".join(child if isinstance(child, Markup) else html.escape(child, quote=False) for child in children)
    )


def _text(value: str | float) -> str:
    """Format an attribute value; floats (coordinates) are rounded to two decimals, without a negative zero."""
    return f"{round(value, 2) + 0.0:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
