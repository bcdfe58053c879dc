"""What happens to one training image: PIL in, normalised float32 array (H, W, C) out.

Evaluation's part, which both frameworks share, is t2t_common/preprocess.py. Source: torchvision's `RandomResizedCrop`.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from t2t_common.preprocess import RESAMPLING, Preprocess, convert, evaluation_image, normalise
from t2t_config import Recipe


def training_image(image: Image.Image, how: Preprocess, recipe: Recipe, rng: np.random.Generator) -> np.ndarray:
    """Augmentation of `recipe`, all drawn from `rng`, then normalise; (H, W, C)."""
    if recipe.augment == "none":
        return evaluation_image(image, how)
    image = convert(image, how)
    if recipe.augment == "affine":
        return normalise(_random_affine(image, how, recipe, rng), how)
    image = _random_resized_crop(image, how.size, recipe.scale, recipe.ratio, rng)
    if rng.random() < recipe.hflip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return normalise(image, how)


def _random_resized_crop(
    image: Image.Image,
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> Image.Image:
    """torchvision's rule: ten tries for a crop that fits, else the central one nearest to the wanted ratio.

    The interpolation is drawn too, bilinear or bicubic, as timm's "random".
    """
    resample = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)[rng.integers(2)]
    width, height = image.size
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
    # Cropped first: with `box`, PIL would let pixels outside the crop into its edges.
    return image.crop((left, top, left + w, top + h)).resize(size[::-1], resample)


def _random_affine(image: Image.Image, how: Preprocess, recipe: Recipe, rng: np.random.Generator) -> Image.Image:
    """Turns, zooms and shifts the resized image about its centre; what comes into view is background (0)."""
    side, _ = how.size  # recipes have square images
    image = image.resize((side, side), RESAMPLING[how.interpolation])
    turn = math.radians(rng.uniform(-recipe.max_turn, recipe.max_turn))
    zoom = 1 + rng.uniform(-recipe.max_zoom, recipe.max_zoom)
    dx, dy = side * rng.uniform(-recipe.max_shift, recipe.max_shift, 2)
    # PIL wants the map from output to input: back to the centre, unshift, unturn, unzoom.
    cos, sin, centre = math.cos(turn) / zoom, math.sin(turn) / zoom, side / 2
    x0 = centre - cos * (centre + dx) - sin * (centre + dy)
    y0 = centre + sin * (centre + dx) - cos * (centre + dy)
    return image.transform(
        (side, side), Image.Transform.AFFINE, (cos, sin, x0, -sin, cos, y0), Image.Resampling.BILINEAR
    )
