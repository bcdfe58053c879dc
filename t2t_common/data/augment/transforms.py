"""Training transform of one image: PIL image in, normalised float32 array (H, W, C) out.

The evaluation transform, shared by both frameworks, is in t2t_common/data/preprocess.py. The crop is timm's training
transform (`timm.data.create_transform(is_training=True, interpolation="random")`): `draw_crop` samples the random
parameters, `cropped` is a pure function of them and gives timm's pixels for timm's parameters.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from t2t_common.data.augment.pad_crop import draw_pad_crop, pad_cropped
from t2t_common.data.augment.randaugment import RANDOM_INTERPOLATION, Layer, apply_layers, draw_layers, fill_colour
from t2t_common.data.preprocess import RESAMPLING, Preprocess, convert, evaluation_image, normalise
from t2t_config import Recipe
from t2t_config.randaugment import RandAugmentConfig


class CropDraws(NamedTuple):
    """Random parameters of one image with `augment="crop"`."""

    box: tuple[int, int, int, int]
    """(left, top, right, bottom) in pixels."""
    resample: Image.Resampling
    flip: bool
    layers: list[Layer]
    """RandAugment operations."""


def training_image(image: Image.Image, preprocess: Preprocess, recipe: Recipe, rng: np.random.Generator) -> np.ndarray:
    """Augment `image` as `recipe` says, with randomness from `rng` only, and normalise it; (H, W, C)."""
    if recipe.augment == "none":
        return evaluation_image(image, preprocess)
    image = convert(image, preprocess)
    if recipe.augment == "affine":
        return normalise(_random_affine(image, preprocess, recipe, rng), preprocess)
    if recipe.augment == "pad_crop":
        return normalise(pad_cropped(image, preprocess, draw_pad_crop(image.size, preprocess, recipe, rng)), preprocess)
    return normalise(cropped(image, preprocess, recipe, draw_crop(image.size, recipe, rng)), preprocess)


def draw_crop(size: tuple[int, int], recipe: Recipe, rng: np.random.Generator) -> CropDraws:
    """Sample the random parameters for an image of `size` (width, height)."""
    choice: Sequence[Image.Resampling] = RANDOM_INTERPOLATION
    if recipe.train_interpolation != "random":
        choice = [RESAMPLING[recipe.train_interpolation]]
    resample = choice[int(rng.integers(len(choice)))]
    box = _draw_box(size, recipe.scale, recipe.ratio, rng)
    flip = bool(rng.random() < recipe.hflip)
    config = randaugment(recipe.auto_augment)
    return CropDraws(box, resample, flip, [] if config is None else draw_layers(config, rng, choice))


def cropped(image: Image.Image, preprocess: Preprocess, recipe: Recipe, draws: CropDraws) -> Image.Image:
    """Crop, resize, flip and apply RandAugment; return the image at the model's input size."""
    # Crop before resizing: with `box`, PIL would let pixels outside the crop influence its edges.
    return augmented(image.crop(draws.box).resize(preprocess.size[::-1], draws.resample), preprocess, recipe, draws)


def augmented(image: Image.Image, preprocess: Preprocess, recipe: Recipe, draws: CropDraws) -> Image.Image:
    """Apply flip and RandAugment; the size is unchanged."""
    if draws.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    config = randaugment(recipe.auto_augment)
    if config is None:
        return image
    return apply_layers(image, draws.layers, limit=config.limit, fill=fill_colour(preprocess.mean))


@functools.cache
def randaugment(text: str | None) -> RandAugmentConfig | None:
    """Parse `Recipe.auto_augment`."""
    return None if text is None else RandAugmentConfig.parse(text)


def _draw_box(
    size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Sample a box as torchvision's `RandomResizedCrop`: ten tries, then a centre crop with the ratio clipped to
    `ratio`."""
    width, height = size
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            break
    else:
        aspect = min(max(width / height, ratio[0]), ratio[1])
        w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
        left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _random_affine(image: Image.Image, preprocess: Preprocess, recipe: Recipe, rng: np.random.Generator) -> Image.Image:
    """Rotate, zoom and shift the resized image about its centre; areas outside the image are background (0)."""
    side, _ = preprocess.size  # recipes use square images
    image = image.resize((side, side), RESAMPLING[preprocess.interpolation])
    turn = math.radians(rng.uniform(-recipe.max_turn, recipe.max_turn))
    zoom = 1 + rng.uniform(-recipe.max_zoom, recipe.max_zoom)
    dx, dy = side * rng.uniform(-recipe.max_shift, recipe.max_shift, 2)
    # PIL needs the map from output to input: back to the centre, then undo shift, rotation and zoom.
    cos, sin, centre = math.cos(turn) / zoom, math.sin(turn) / zoom, side / 2
    x0 = centre - cos * (centre + dx) - sin * (centre + dy)
    y0 = centre + sin * (centre + dx) - cos * (centre + dy)
    return image.transform(
        (side, side), Image.Transform.AFFINE, (cos, sin, x0, -sin, cos, y0), Image.Resampling.BILINEAR
    )
