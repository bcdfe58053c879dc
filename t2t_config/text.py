"""Escaping of untrusted names and messages for display in a terminal, a log, a page or an error message."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

JOINERS = "\u200c\u200d"
"""Zero-width characters used by Persian, Indic scripts and emoji."""


def escaped(text: str, keep: str = "") -> str:
    r"""Return `text` with unprintable characters escaped as in Python literals: "\x1b", "\n", "\udcff".

    These are control characters (which terminals interpret), line breaks, marks that change the writing direction, and
    lone surrogates (bytes of a file name that are not UTF-8). Printable characters of any script are kept.

    Args:
        text: Name from a file of unknown origin.
        keep: Characters that are kept anyway, such as line breaks.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter in keep or _is_shown(letter) else ascii(letter)[1:-1] for letter in text)


def _is_shown(letter: str) -> bool:
    return letter.isprintable() or letter in JOINERS or unicodedata.category(letter) == "Zs"


def few(names: Iterable[str], count: int = 3) -> str:
    """Return the first `count` names and how many more there are, in one line, each shortened by `readable`."""
    names = list(names)
    rest = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(map(readable, names[:count])) + rest


def readable(name: str, most: int = 100) -> str:
    """Return `name` for a message: unprintable characters are escaped, and the middle of a long name is left out."""
    short = name if len(name) <= most else f"{name[: most - 20]}...{name[-17:]}"
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in short)


def first_line(error: BaseException) -> str:
    """Return the first line of the message of `error`, or its type if it has no message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def reason(error: BaseException) -> str:
    """Return the first line of the message of `error`, without the middle if it is long, which is mostly paths."""
    line = first_line(error)
    return readable(line if len(line) <= 160 else f"{line[:60]} ... {line[-90:]}", 200)
