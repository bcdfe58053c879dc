"""Pixels: the colours say what the figures are, and sheets hold what they are given."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageChops

from t2t_common.visualize.draw import (
    PALETTES,
    SHEET,
    Group,
    Section,
    Tile,
    coloured,
    map_tile,
    overlay_tile,
    palette_colours,
    scaled,
    sheet,
    tile_width,
    wrapped,
)


def section(tiles: list[Tile], columns: int = 2) -> Section:
    return Section("name", "Title", "text", "viridis", ("least", "most"), [Group("heading", tiles, columns)])


@pytest.mark.parametrize("palette", PALETTES)
def test_palettes_rise_in_brightness_and_hit_their_stops(palette: str):
    stops = palette_colours(palette)
    ends = coloured(np.array([0.0, 1.0]), palette).astype(int)
    assert [f"#{bytes(list(end)).hex()}" for end in ends] == [stops[0], stops[-1]]
    brightness = coloured(np.linspace(0, 1, 200), palette) @ [0.299, 0.587, 0.114]
    assert (np.diff(brightness) > 0).all()


def test_scaled_goes_from_0_to_1():
    assert scaled(np.array([3, 5, 4], np.float32)).tolist() == [0, 1, 0.5]
    assert scaled(np.full((2, 2), 7.0)).tolist() == [[0, 0], [0, 0]]


def test_every_token_is_a_rectangle_of_its_colour():
    values = np.array([[0.0, 1.0, 2.0], [3.0, 4.0, 6.0]])
    pixels = np.asarray(map_tile(values, (30, 20), "gray"), int)
    assert pixels.shape == (20, 30, 3)
    wanted = np.round(values / 6 * 255).repeat(10, 0).repeat(10, 1)
    assert np.abs(pixels - wanted[..., None]).max() <= 1


def test_the_hottest_place_covers_the_image_most():
    image = Image.new("RGB", (60, 60), (120, 120, 120))
    values = np.zeros((6, 6))
    values[1, 4] = 1
    pixels = np.asarray(overlay_tile(image, values, (60, 60), "inferno"), int)
    distance = np.abs(pixels - 120).sum(axis=2)
    hot = np.unravel_index(pixels.sum(axis=2).argmax(), distance.shape)
    assert np.hypot(hot[0] - 15, hot[1] - 45) < 5
    assert distance[45, 15] < 0.5 * distance[hot]
    dark = np.asarray(overlay_tile(Image.new("L", (6, 6)), values, (60, 60), "inferno"), int)
    assert (dark <= pixels).all()  # the image is seen through everywhere


def test_the_sheet_holds_every_tile_and_caption():
    colours = ["red", "green", "blue"]
    side = tile_width(2)
    tiles = [Tile(Image.new("RGB", (side, 50), colour), "words\nbelow") for colour in colours]
    picture = sheet(section(tiles), "subtitle")
    assert picture.width == SHEET
    pixels = np.asarray(picture)
    for tile in tiles:
        assert (pixels == tile.image.getpixel((0, 0))).all(axis=2).sum() == side * 50
    for other in (
        sheet(section(tiles), "another"),
        sheet(section([*tiles[:2], tiles[2]._replace(caption="")]), "subtitle"),
        sheet(section(tiles)._replace(ends=("x", "y")), "subtitle"),
    ):
        assert other.size != picture.size or ImageChops.difference(picture, other).getbbox() is not None
    assert (pixels[-10:] == 255).all()  # nothing is cut at the lower edge


def test_long_sheets_grow():
    tiles = [Tile(Image.new("RGB", (tile_width(4), 400), "red"))] * 23
    picture = sheet(section(tiles, 4), "")
    assert (np.asarray(picture) == (255, 0, 0)).all(axis=2).sum() == 23 * 400 * tile_width(4)


def test_text_is_broken_at_spaces_and_line_ends():
    assert wrapped("a b\nc", 20, 500) == ["a b", "c"]
    assert wrapped("one two three", 20, 80) == ["one two", "three"]
    assert wrapped("incomprehensibilities", 20, 50) == ["incomprehensibilities"]
    assert wrapped("", 20, 50) == []
