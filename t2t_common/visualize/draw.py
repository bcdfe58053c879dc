"""Rendering of arrays: colours, maps as tiles, tiles on a labelled sheet. Pillow only, with the same pixels everywhere.

Shapes: H W pixels, h w tokens. Text is ASCII: Pillow's default font has few other characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PALETTES = {
    "inferno": "000004 210c4a 57106e 8a226a bc3754 e45a31 f98e09 f9cb35 fcffa4",
    "viridis": "440154 472d7b 3b528b 2c728e 21918c 28ae80 5ec962 addc30 fde725",
    "gray": "000000 ffffff",
}
"""Colours from minimum to maximum, evenly spaced; matplotlib's palettes of these names (CC0)."""

SHEET, MARGIN, GAP = 1000, 28, 12
TITLE, LABEL, SMALL = 34, 28, 24
"""Font sizes; on a phone with a width of 390 pixels a sheet is scaled by 0.39."""
TEXT, MUTED, BACK = "#1f2328", "#57606a", "#ffffff"
MOST_OPAQUE = 0.85
"""Maximum opacity of a heat map over its image."""


class Tile(NamedTuple):
    """Image with the caption below it."""

    image: Image.Image
    caption: str = ""


class Group(NamedTuple):
    """Tiles of the same size under one heading, with `columns` tiles per row."""

    heading: str
    tiles: Sequence[Tile]
    columns: int

    @property
    def narrow(self) -> int:
        """Number of tiles per row on a phone: fewer if they have long captions."""
        return min(self.columns, 2 if any(len(tile.caption) > 6 for tile in self.tiles) else 4)


class Section(NamedTuple):
    """One kind of visualisation: a PNG file called `name` and a part of the page with `text`.

    `ends` are the meanings of the first and the last colour of the palette.
    """

    name: str
    title: str
    text: str
    palette: str
    ends: tuple[str, str]
    groups: Sequence[Group]

    @property
    def colours(self) -> list[str]:
        return palette_colours(self.palette)


def tile_width(columns: int) -> int:
    """Return the width in pixels of a tile in a row of `columns` tiles."""
    return (SHEET - 2 * MARGIN - (columns - 1) * GAP) // columns


def palette_colours(palette: str) -> list[str]:
    """Return the colours of a palette from minimum to maximum, as #rrggbb."""
    return [f"#{colour}" for colour in PALETTES[palette].split()]


def scaled(values: np.ndarray) -> np.ndarray:
    """Scale `values` to 0..1 by their minimum and maximum, in float64; all 0 if they are equal."""
    values = values.astype(np.float64)
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def coloured(values: np.ndarray, palette: str) -> np.ndarray:
    """Map values in 0..1, (...), to colours (..., 3) in 0..255, float64."""
    stops = np.array([list(bytes.fromhex(colour)) for colour in PALETTES[palette].split()], np.float64)
    places = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(values, places, stops[:, i]) for i in range(3)], axis=-1)


def to_image(pixels_HxWx3: np.ndarray) -> Image.Image:
    return Image.fromarray(np.round(pixels_HxWx3).clip(0, 255).astype(np.uint8))


def resized(values_hxw: np.ndarray, size: tuple[int, int], how: Image.Resampling) -> np.ndarray:
    """Resize `values` to `size` (width, height)."""
    return np.asarray(Image.fromarray(values_hxw.astype(np.float32)).resize(size, how), np.float64)


def map_tile(values_hxw: np.ndarray, size: tuple[int, int], palette: str) -> Image.Image:
    """Draw a map in colours scaled to its minimum and maximum, with a rectangle for every token."""
    return to_image(coloured(resized(scaled(values_hxw), size, Image.Resampling.NEAREST), palette))


def overlay_tile(image: Image.Image, values_hxw: np.ndarray, size: tuple[int, int], palette: str) -> Image.Image:
    """Overlay the smoothed map on the image in gray; higher values are more opaque."""
    heat = resized(scaled(values_hxw), size, Image.Resampling.BICUBIC).clip(0, 1)
    gray = np.asarray(image.convert("L").resize(size, Image.Resampling.LANCZOS), np.float64)
    share = (0.25 + (MOST_OPAQUE - 0.25) * heat)[..., None]
    return to_image((1 - share) * gray[..., None] + share * coloured(heat, palette))


def sheet(section: Section, subtitle: str) -> Image.Image:
    """Draw the whole section as one image, SHEET pixels wide."""
    pen = _Pen()
    pen.write(section.title, TITLE, TEXT)
    pen.write(subtitle, SMALL, MUTED)
    pen.legend(section.palette, *section.ends)
    for group in section.groups:
        if group.heading:
            pen.write(group.heading, LABEL, TEXT)
        for start in range(0, len(group.tiles), group.columns):
            pen.row(group.tiles[start : start + group.columns], group.columns)
    return pen.picture()


class _Pen:
    """Draws on a sheet from top to bottom."""

    def __init__(self) -> None:
        self._canvas = Image.new("RGB", (SHEET, 1 << 10), BACK)
        self._y = MARGIN

    def picture(self) -> Image.Image:
        return self._canvas.crop((0, 0, SHEET, self._y + MARGIN - GAP))

    def write(self, text: str, size: int, colour: str) -> None:
        for line in wrapped(text, size, SHEET - 2 * MARGIN):
            self._draw(size * 2).text((MARGIN, self._y), line, colour, ImageFont.load_default(size))
            self._y += round(size * 1.3)
        self._y += 4

    def legend(self, palette: str, least: str, most: str) -> None:
        font, width, height = ImageFont.load_default(SMALL), 240, 18
        bar = to_image(np.broadcast_to(coloured(np.linspace(0, 1, width), palette), (height, width, 3)))
        draw = self._draw(SMALL * 2)
        draw.text((MARGIN, self._y), least, MUTED, font)
        left = MARGIN + round(font.getlength(least)) + GAP
        self._canvas.paste(bar, (left, self._y + 7))
        draw.text((left + width + GAP, self._y), most, MUTED, font)
        self._y += round(SMALL * 1.3) + GAP

    def row(self, tiles: Sequence[Tile], columns: int) -> None:
        font, width = ImageFont.load_default(SMALL), tile_width(columns)
        lines = [wrapped(tile.caption, SMALL, width) for tile in tiles]
        height, deepest = max(tile.image.height for tile in tiles), max(map(len, lines))
        draw = self._draw(height + (deepest + 1) * SMALL * 2)
        for i, (tile, words) in enumerate(zip(tiles, lines, strict=True)):
            left = MARGIN + i * (width + GAP)
            self._canvas.paste(tile.image, (left, self._y))
            for j, line in enumerate(words):
                draw.text((left, self._y + height + 4 + round(j * SMALL * 1.15)), line, MUTED, font)
        self._y += height + round(deepest * SMALL * 1.15) + (4 if deepest else 0) + GAP

    def _draw(self, room: int) -> ImageDraw.ImageDraw:
        """Return a drawing context, with `room` pixels of space below the current position."""
        if (missing := self._y + room + MARGIN - self._canvas.height) > 0:
            taller = Image.new("RGB", (SHEET, self._canvas.height + max(missing, self._canvas.height)), BACK)
            taller.paste(self._canvas)
            self._canvas = taller
        return ImageDraw.Draw(self._canvas)


def wrapped(text: str, size: int, width: int) -> list[str]:
    """Wrap `text` to lines of at most `width` pixels, at line breaks and at spaces if there are any."""
    font = ImageFont.load_default(size)
    lines: list[str] = []
    for paragraph in text.splitlines():
        lines.append("")
        for word in paragraph.split():
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] == "" or font.getlength(longer) <= width:
                lines[-1] = longer
            else:
                lines.append(word)
    return lines
