"""Sections of the sheets and of the page that visualise one image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from PIL import Image

from t2t_common.visualize.draw import (
    Group,
    Section,
    Tile,
    coloured,
    map_tile,
    overlay_tile,
    scaled,
    tile_width,
    to_image,
)
from t2t_common.visualize.inside import Inside, liveliest_channels, position_similarity, rollout

EACH = ("least", "most of each map")
HEAT, FEATURES, POSITIONS = "inferno", "gray", "viridis"
MAPS, CHANNELS, LEAST_HEADS, MOST_HEADS = 4, 6, 4, 8
"""Number of tiles per row: maps on the image, feature maps, heads of a block (minimum and maximum)."""
FEATURE_MAPS = 2 * CHANNELS
MOST_POSITIONS = 10
"""Maximum number of rows and of columns of positions whose similarities are drawn; larger grids are sampled evenly."""

STAGES = ("after the first soft split", "after the second soft split", "after the third soft split")


def draw_image(inside: Inside, image: Image.Image) -> list[Section]:
    """Return all sections for one image; `image` is the model's input."""
    mean = {name: weights.mean(axis=0) for name, weights in inside.attention.items()}
    sections = [
        Section(
            "rollout",
            "Attention rollout",
            "Which tokens of the image a token is made of after each block, if every block takes half of a token from "
            "where it attends (mean over heads) and half from the token itself (Abnar and Zuidema, 2020). Below each "
            "map its least and largest share; what stays in the token itself is left out.",
            HEAT,
            EACH,
            _maps(inside, image, rollout(inside.attention)),
        ),
        Section(
            "attention",
            "Attention of each block",
            "Where a token looks in each block, mean over heads, and the least and largest share of its attention.",
            HEAT,
            EACH,
            _maps(inside, image, mean),
        ),
        Section(
            "heads",
            "Attention of each head",
            "Where the class token looks, head by head. Every square is one token of the image.",
            HEAT,
            EACH,
            list(_heads(inside, image)),
        ),
    ]
    if inside.stages:
        text = f"Feature maps of the T2T module: the {FEATURE_MAPS} channels that vary most over the image, by number."
        stages = list(_stages(inside, image))
        sections.append(Section("soft_splits", "Tokens after each soft split", text, FEATURES, EACH, stages))
    return sections


def draw_positions(inside: Inside) -> Section:
    """Return the section on position embeddings, which is the same for every image."""
    similarity = position_similarity(inside.positions, inside.grid)
    rows, columns = (_spaced(side) for side in inside.grid)
    chosen = similarity[np.ix_(rows, columns)]
    some = "" if chosen.size == similarity.size else f" {len(rows)} of {inside.grid[0]} rows are drawn, "
    some += some and f"{len(columns)} of {inside.grid[1]} columns."
    return Section(
        "positions",
        "Similarity of the positions",
        "Every small picture belongs to one token of the image: how like its row of the position table is to those of "
        f"all tokens, by their cosine.{some}",
        POSITIONS,
        (f"cosine {chosen.min():.2f}", f"{chosen.max():.2f}"),
        [Group("", [Tile(_mosaic(coloured(scaled(chosen), POSITIONS)))], 1)],
    )


def left_out(inside: Inside) -> str:
    """Describe in one sentence what is not drawn."""
    if not inside.stages:
        return "This model cuts the image into patches once: it has no soft splits to draw."
    return "Attention is drawn of the blocks, not of the layers between the soft splits."


def _size(image: Image.Image, columns: int) -> tuple[int, int]:
    width = tile_width(columns)
    return width, max(1, round(width * image.height / image.width))


def _maps(inside: Inside, image: Image.Image, weights_of: Mapping[str, np.ndarray]) -> list[Group]:
    """Draw the rows of the matrices (N, M) that belong to the prefix tokens on the image."""
    groups = []
    for i, token in enumerate(inside.prefix_tokens):
        shares_of = {name: inside.on_grid(weights[i]) for name, weights in weights_of.items()}
        tiles = [
            Tile(overlay_tile(image, shares, _size(image, MAPS), HEAT), f"{name}\n{_range(shares)}")
            for name, shares in shares_of.items()
        ]
        groups.append(Group(token, tiles, MAPS))
    return groups


def _range(weights: np.ndarray) -> str:
    """Return the smallest and largest share, in percent."""
    low, high = (f"{100 * share:.2g}" for share in (weights.min(), weights.max()))
    return f"{low} to {high} %"


def _heads(inside: Inside, image: Image.Image) -> Iterator[Group]:
    for name, weights in inside.attention.items():
        columns = min(max(len(weights), LEAST_HEADS), MOST_HEADS)
        maps = inside.on_grid(weights[:, 0])
        yield Group(name, [Tile(map_tile(head, _size(image, columns), HEAT)) for head in maps], columns)


def _stages(inside: Inside, image: Image.Image) -> Iterator[Group]:
    for when, (layer, tokens) in zip(STAGES, inside.stages.items(), strict=True):
        height, width, channels = tokens.shape
        tiles = [
            Tile(map_tile(tokens[..., channel], _size(image, CHANNELS), FEATURES), str(channel))
            for channel in liveliest_channels(tokens, FEATURE_MAPS)
        ]
        yield Group(f"{when}: {height}x{width} tokens of {channels} channels ({layer})", tiles, CHANNELS)


def _spaced(side: int) -> np.ndarray:
    return np.unique(np.linspace(0, side - 1, min(side, MOST_POSITIONS)).round().astype(int))


def _mosaic(maps_rxcxhxwx3: np.ndarray) -> Image.Image:
    """Arrange maps in rows and columns with white lines between them, as wide as a sheet."""
    rows, columns, height, width, _ = maps_rxcxhxwx3.shape
    line = 4
    cell = (tile_width(1) - (columns - 1) * line) // columns
    tall = max(1, round(cell * height / width))
    canvas = Image.new("RGB", (columns * (cell + line) - line, rows * (tall + line) - line), "white")
    for row in range(rows):
        for column in range(columns):
            small = to_image(maps_rxcxhxwx3[row, column]).resize((cell, tall), Image.Resampling.NEAREST)
            canvas.paste(small, (column * (cell + line), row * (tall + line)))
    return canvas
