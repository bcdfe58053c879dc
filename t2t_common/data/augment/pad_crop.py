"""CIFAR augmentation at the model's input size: resize, black border, random crop, flip.

Equivalent to torchvision's `Resize`, `RandomCrop(padding=)` and `RandomHorizontalFlip` in the authors'
transfer_learning.py. `draw_pad_crop` samples the random parameters, `pad_cropped` is a pure function of them.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from PIL import Image

from t2t_common.data.preprocess import RESAMPLING, Preprocess, covering_size
from t2t_config import Recipe


class PadCropDraws(NamedTuple):
    """Random parameters of the augmentation of one image."""

    left: int
    """Left edge of the crop in the resized image, in pixels; negative inside the border."""
    top: int
    flip: bool


def draw_pad_crop(
    size: tuple[int, int], preprocess: Preprocess, recipe: Recipe, rng: np.random.Generator
) -> PadCropDraws:
    """Sample the random parameters for an image of `size` (width, height); all crop positions are equally likely."""
    (height, width), resized = preprocess.size, _resized(size, preprocess)
    border = int(min(preprocess.size) * recipe.padding)
    left = rng.integers(-border, resized[0] + border - width, endpoint=True)
    top = rng.integers(-border, resized[1] + border - height, endpoint=True)
    return PadCropDraws(int(left), int(top), bool(rng.random() < recipe.hflip))


def pad_cropped(image: Image.Image, preprocess: Preprocess, draws: PadCropDraws) -> Image.Image:
    """Return the augmented image at the model's input size; pixels outside the resized image are black."""
    height, width = preprocess.size
    image = image.resize(_resized(image.size, preprocess), RESAMPLING[preprocess.interpolation])
    image = image.crop((draws.left, draws.top, draws.left + width, draws.top + height))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draws.flip else image


def _resized(size: tuple[int, int], preprocess: Preprocess) -> tuple[int, int]:
    return covering_size(size, dataclasses.replace(preprocess, crop_pct=1.0))
