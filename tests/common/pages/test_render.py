"""Templates are filled in with whatever a run or a file is called; pages share a layout."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import jinja2
import pytest
from PIL import Image

from t2t_common.pages import png, render

EVIL = '<script>"&\x1b[2J\udcff'


def test_values_are_escaped_and_control_characters_are_shown(tmp_path: Path):
    (tmp_path / "a.html").write_text('<p title="{{ x }}">{{ x }}</p>\n{% for n in [1, 2] %}\n{{ n }}\n{% endfor %}\n')
    found = "&lt;script&gt;&#34;&amp;\\x1b[2J\\udcff"
    assert render("a.html", folder=tmp_path, x=EVIL) == f'<p title="{found}">{found}</p>\n1\n2\n'


def test_a_value_that_is_missing_is_an_error(tmp_path: Path):
    (tmp_path / "a.html").write_text("{{ missing }}")
    with pytest.raises(jinja2.UndefinedError, match="missing"):
        render("a.html", folder=tmp_path)


def test_every_page_has_the_layout_with_the_style_sheet():
    page = render("pictures.html", kind="plain", title=EVIL, facts=[], pictures=[], of_model=[])
    assert page.startswith('<!doctype html>\n<html lang="en">')
    assert "default-src 'none'" in page
    assert "color-scheme: light dark" in page
    assert "<title>&lt;script&gt;" in page
    assert 'http-equiv="refresh"' not in page
    running = render("pictures.html", refresh=7, kind="plain", title="", facts=[], pictures=[], of_model=[])
    assert '<meta http-equiv="refresh" content="7">' in running


def test_a_picture_survives_as_text():
    image = Image.effect_noise((9, 7), 90)
    assert Image.open(io.BytesIO(base64.b64decode(png(image)))).tobytes() == image.tobytes()
