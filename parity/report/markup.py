"""HTML and SVG by function calls: text is escaped where it enters, so no name can break a page."""

from __future__ import annotations

import html
from collections.abc import Iterable

VOID = ("br", "meta")
"""Elements without an end tag."""


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(element: str, *children: str, **attributes: str | float | bool | None) -> Markup:
    """One element. Attributes: `class_` for class, `_` for `-`; None and False leave one out, True is a bare one."""
    written = []
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        key = name.rstrip("_").replace("_", "-")
        written.append(f" {key}" if value is True else f' {key}="{html.escape(_text(value))}"')
    start = f"<{element}{''.join(written)}>"
    return Markup(start if element in VOID else f"{start}{join(children)}</{element}>")


def join(children: Iterable[str]) -> Markup:
    """Children in a row; those that are plain text are escaped."""
    return Markup(
        "".join(child if isinstance(child, Markup) else html.escape(child, quote=False) for child in children)
    )


def _text(value: str | float) -> str:
    """Coordinates need no more than two decimals, and no minus before a zero."""
    return f"{round(value, 2) + 0.0:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
