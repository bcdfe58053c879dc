"""Visualisation as a self-contained HTML page: no scripts, no external resources, for phones and dark mode too."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from PIL import Image

from t2t_common.visualize.draw import Group, Section, Tile, palette_colours

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Content-Security-Policy: the browser blocks scripts and external resources."""

STYLE = """
:root { color-scheme: light dark; --text: #1c2024; --muted: #5b6470; --back: #fff; --edge: #d5d9df; }
@media (prefers-color-scheme: dark) { :root { --text: #e8eaed; --muted: #a3abb6; --back: #15181c; --edge: #3a414b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1100px; padding: 1rem; font: 15px/1.5 system-ui, sans-serif; }
body { color: var(--text); background: var(--back); }
h1 { margin: 0; font-size: 1.6rem; line-height: 1.25; }
h2 { margin: 2.5rem 0 .75rem; padding-top: 1rem; border-top: 1px solid var(--edge); font-size: 1.3rem; }
h3 { margin: 2rem 0 .25rem; font-size: 1.1rem; }
h4 { margin: 1rem 0 .4rem; font-size: .95rem; font-weight: 600; }
h1, h2, h4, p, figcaption { overflow-wrap: anywhere; }
p { margin: .3rem 0; max-width: 70ch; }
.muted, figcaption { color: var(--muted); }
figure { margin: 0; }
figcaption { font-size: .8rem; line-height: 1.3; padding-top: .15rem; white-space: pre-line; }
img { display: block; width: 100%; height: auto; }
.seen { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
.seen figure { width: 224px; }
.seen ol { margin: .3rem 0; padding: 0; list-style: none; }
.tiles { display: grid; gap: .6rem; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); }
.legend { display: flex; gap: .5rem; align-items: center; color: var(--muted); font-size: .85rem; }
.legend span:nth-child(2) { flex: none; width: 8rem; height: .8rem; }
@media (max-width: 640px) { .tiles { grid-template-columns: repeat(var(--narrow), minmax(0, 1fr)); gap: .4rem; } }
""".strip()


class Picture(NamedTuple):
    """Page content for one image: the model's input, the predictions (best first), and the sections."""

    name: str
    seen: Image.Image
    says: Sequence[str]
    sections: Sequence[Section]


def page(title: str, facts: Sequence[str], pictures: Sequence[Picture], of_model: Sequence[Section]) -> str:
    """Return the document; `facts` are lines about the model, `of_model` the sections that are the same for all
    images."""
    lines = "".join(f'<p class="muted">{escape(fact)}</p>' for fact in facts)
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    )
    main = "".join(map(_picture, pictures)) + f"<h2>The model</h2>{''.join(map(_section, of_model))}"
    body = f"<header><h1>{escape(title)}</h1>{lines}</header><main>{main}</main>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def _picture(picture: Picture) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in picture.says)
    says = f"<div>The model says<ol>{lines}</ol></div>" if lines else ""
    seen = _figure(Tile(picture.seen, "what the model saw"), picture.name)
    sections = "".join(map(_section, picture.sections))
    return f'<h2>{escape(picture.name)}</h2><div class="seen">{seen}{says}</div>{sections}'


def _section(section: Section) -> str:
    least, most = map(escape, section.ends)
    bar = f'<span style="background: linear-gradient(to right, {", ".join(palette_colours(section.palette))})"></span>'
    legend = f'<div class="legend"><span>{least}</span>{bar}<span>{most}</span></div>'
    groups = "".join(_group(group, section.title) for group in section.groups)
    return f"<section><h3>{escape(section.title)}</h3><p>{escape(section.text)}</p>{legend}{groups}</section>"


def _group(group: Group, title: str) -> str:
    heading = f"<h4>{escape(group.heading)}</h4>" if group.heading else ""
    narrow = min(group.columns, 2 if any(len(tile.caption) > 6 for tile in group.tiles) else 4)
    style = f"--columns: {group.columns}; --narrow: {narrow}"
    names = [
        ", ".join(filter(None, (title, group.heading, tile.caption.replace("\n", ", ") or str(i))))
        for i, tile in enumerate(group.tiles)
    ]
    tiles = "".join(map(_figure, group.tiles, names))
    return f'{heading}<div class="tiles" style="{style}">{tiles}</div>'


def _figure(tile: Tile, name: str) -> str:
    caption = f"<figcaption>{escape(tile.caption)}</figcaption>" if tile.caption else ""
    return f'<figure><img src="{_data(tile.image)}" alt="{escape(name)}">{caption}</figure>'


def _data(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
