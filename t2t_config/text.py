"""Names and messages from files of unknown origin, as a terminal, a log, a page or an error message can hold them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

JOINERS = "\u200c\u200d"
"""Zero-width characters that Persian, Indic scripts and emoji are written with."""


def escaped(text: str, keep: str = "") -> str:
    r"""`text` with every character that cannot be printed as Python writes it: "\x1b", "\n", "\udcff".

    These are control characters (which terminals obey), line breaks, marks that turn the direction of writing, and
    lone surrogates (bytes of a file name that are not UTF-8). What is printable stays as it is, in any script.

    Args:
        text: a name from a file of unknown origin.
        keep: characters that stay all the same, such as line breaks.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter in keep or _is_shown(letter) else ascii(letter)[1:-1] for letter in text)


def _is_shown(letter: str) -> bool:
    return letter.isprintable() or letter in JOINERS or unicodedata.category(letter) == "Zs"


def few(names: Iterable[str], count: int = 3) -> str:
    """The first `count` names and how many more there are, in one line, each shortened by `readable`."""
    names = list(names)
    rest = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(map(readable, names[:count])) + rest


def readable(name: str, most: int = 100) -> str:
    """`name` for a message: what cannot be printed is escaped, and the middle is left out if it is long."""
    short = name if len(name) <= most else f"{name[: most - 20]}...{name[-17:]}"
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in short)


def first_line(error: BaseException) -> str:
    """The first line of the message of `error`, or its type where it has no message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def reason(error: BaseException) -> str:
    """The first line of the message of `error`; if it is long, without its middle, which is mostly paths."""
    line = first_line(error)
    return readable(line if len(line) <= 160 else f"{line[:60]} ... {line[-90:]}", 200)
