"""Text of strangers where it is shown."""

from __future__ import annotations

import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2t_config.text import escaped


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\nb\r\u2028c", "a\\nb\\r\\u2028c"),
        (os.fsdecode(b"caf\xe9"), "caf\\udce9"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("\x9b2J\x7f", "\\x9b2J\\x7f"),
    ],
)
def test_what_cannot_be_printed_is_escaped(text: str, shown: str):
    assert escaped(text) == shown
    assert shown.isprintable()
    assert escaped(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cat",
        "\u732b \u0643\u0644\u0628",
        "\u0645\u06cc\u200c\u0631\u0648\u0645",
        "a\u00a0b",
        "[x]",
        "\U0001f469\u200d\U0001f52c",
    ],
)
def test_every_script_stays(text: str):
    assert escaped(text) == text


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_becomes_one_that_can_be_shown(text: str):
    shown = escaped(text)
    assert not [letter for letter in shown if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")]
    assert shown.encode().decode() == shown
    assert escaped(shown) == shown


def test_line_breaks_may_stay():
    assert escaped("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\x1b"
