"""What happens to one image: PIL in, normalised float32 array (H, W, C) out.

Sources: torchvision's `RandomResizedCrop`, `Resize`, `CenterCrop` on PIL images; timm's evaluation transform.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from t2t_config import ModelConfig, Recipe, model_config

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """How images become the model's input: what evaluation has to know about training."""

    img_size: int
    in_chans: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    interpolation: str

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.in_chans:
                raise ValueError(f"{name} {getattr(self, name)} needs one figure for each of {self.in_chans} channels")

    @classmethod
    def of_recipe(cls, recipe: Recipe) -> Preprocess:
        """The recipe's own figures, and the model's where it has none."""
        return cls.of_model(
            model_config(recipe.model),
            {field.name: getattr(recipe, field.name) for field in dataclasses.fields(cls)},
        )

    @classmethod
    def of_model(cls, config: ModelConfig, known: Mapping[str, Any]) -> Preprocess:
        """`known` wins where it has a value; one channel takes the averages of the model's mean and std."""
        in_chans = known.get("in_chans") or 3
        own: dict[str, Any] = {
            "img_size": config.img_size,
            "crop_pct": config.crop_pct,
            "interpolation": config.interpolation,
        }
        for name, figures in (("mean", config.mean), ("std", config.std)):
            own[name] = figures if in_chans == 3 else (sum(figures) / len(figures),)
        chosen = {name: own[name] if known.get(name) is None else known[name] for name in own}
        chosen["mean"], chosen["std"] = tuple(chosen["mean"]), tuple(chosen["std"])
        return cls(in_chans=in_chans, **chosen)


def evaluation_image(image: Image.Image, how: Preprocess) -> np.ndarray:
    """Resize of the shorter side to floor(img_size / crop_pct), centre crop, normalise; (H, W, C)."""
    image = _convert(image, how)
    width, height = image.size
    short = math.floor(how.img_size / how.crop_pct)
    size = (short, short * height // width) if width <= height else (short * width // height, short)
    if size != image.size:
        image = image.resize(size, RESAMPLING[how.interpolation])
    left, top = (round((side - how.img_size) / 2) for side in image.size)
    return _normalise(image.crop((left, top, left + how.img_size, top + how.img_size)), how)


def training_image(image: Image.Image, how: Preprocess, recipe: Recipe, rng: np.random.Generator) -> np.ndarray:
    """Augmentation of `recipe`, all drawn from `rng`, then normalise; (H, W, C)."""
    if recipe.augment == "none":
        return evaluation_image(image, how)
    image = _convert(image, how)
    if recipe.augment == "affine":
        return _normalise(_random_affine(image, how, recipe, rng), how)
    image = _random_resized_crop(image, how.img_size, recipe.scale, recipe.ratio, rng)
    if rng.random() < recipe.hflip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return _normalise(image, how)


def _convert(image: Image.Image, how: Preprocess) -> Image.Image:
    return image.convert("L" if how.in_chans == 1 else "RGB")


def _normalise(image: Image.Image, how: Preprocess) -> np.ndarray:
    pixels_HxWxC = np.asarray(image, np.float32).reshape(how.img_size, how.img_size, how.in_chans) / np.float32(255)
    return (pixels_HxWxC - np.asarray(how.mean, np.float32)) / np.asarray(how.std, np.float32)


def _random_resized_crop(
    image: Image.Image,
    img_size: int,
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
    return image.crop((left, top, left + w, top + h)).resize((img_size, img_size), resample)


def _random_affine(image: Image.Image, how: Preprocess, recipe: Recipe, rng: np.random.Generator) -> Image.Image:
    """Turns, zooms and shifts the resized image about its centre; what comes into view is background (0)."""
    side = how.img_size
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
