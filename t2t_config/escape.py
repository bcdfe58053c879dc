"""Text of strangers (names of folders, files and classes) as a terminal, a log or a page can hold it."""

from __future__ import annotations

import unicodedata

JOINERS = "\u200c\u200d"
"""Zero-width characters that Persian, Indic scripts and emoji are written with."""


def escaped(text: str, keep: str = "") -> str:
    r"""`text` with every character that cannot be printed as Python writes it: "\x1b", "\n", "\udcff".

    These are control characters (which terminals obey), line breaks, marks that turn the direction of writing, and
    lone surrogates (bytes of a file name that are not UTF-8). What is printable stays as it is, in any script.

    Args:
        text: whatever a stranger wrote.
        keep: characters that stay all the same, such as line breaks.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter in keep or _is_shown(letter) else ascii(letter)[1:-1] for letter in text)


def _is_shown(letter: str) -> bool:
    return letter.isprintable() or letter in JOINERS or unicodedata.category(letter) == "Zs"
