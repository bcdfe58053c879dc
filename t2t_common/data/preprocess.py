"""Evaluation transform of one image: PIL image in, normalised float32 array (H, W, C) out.

timm's evaluation transform on PIL images, pixel for pixel (`timm.data.create_transform`, crop_mode "center"), that is
torchvision's `Resize`, `CenterCrop`, `ToTensor`, `Normalize`. The training augmentation is in
t2t_common/data/augment/transforms.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from t2t_config import ModelConfig, Recipe, model_config
from t2t_config.bounds import check_bounds
from t2t_config.shapes import to_pair

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Preprocessing of images into the model's input: the settings that evaluation shares with training.

    `img_size` is the side of a square, or (height, width).

    Raises:
        ValueError: If a value is invalid.
    """

    img_size: int | tuple[int, int]
    in_chans: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    interpolation: str

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.in_chans:
                raise ValueError(f"{name} {getattr(self, name)} needs one figure for each of {self.in_chans} channels")
        check_bounds({name: getattr(self, name) for name in ("img_size", "mean", "std", "crop_pct")})
        if self.in_chans not in (1, 3):
            raise ValueError(f"images have 1 or 3 channels, the model takes {self.in_chans}: choose another model")
        if self.interpolation not in RESAMPLING:
            raise ValueError(f"interpolation {self.interpolation!r} is not one of {', '.join(RESAMPLING)}")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return to_pair(self.img_size)

    @classmethod
    def of_recipe(cls, recipe: Recipe) -> Preprocess:
        """Return the preprocessing of a recipe, with the model's values where the recipe has none."""
        return cls.of_model(
            model_config(recipe.model),
            {field.name: getattr(recipe, field.name) for field in dataclasses.fields(cls)},
        )

    @classmethod
    def of_model(cls, config: ModelConfig, known: Mapping[str, Any]) -> Preprocess:
        """Return the preprocessing of a model; values in `known` take precedence.

        For one channel, the mean and std of the model are averaged.
        """
        in_chans = known.get("in_chans") or 3
        own: dict[str, Any] = {
            "img_size": config.img_size,
            "crop_pct": config.crop_pct,
            "interpolation": config.interpolation,
        }
        for name, figures in (("mean", config.mean), ("std", config.std)):
            own[name] = figures if in_chans == 3 else (sum(figures) / len(figures),)
        chosen = {name: own[name] if known.get(name) is None else known[name] for name in own}
        height, width = to_pair(chosen["img_size"])
        chosen["img_size"] = height if height == width else (height, width)
        chosen["mean"], chosen["std"] = tuple(chosen["mean"]), tuple(chosen["std"])
        return cls(in_chans=in_chans, **chosen)


def evaluation_image(image: Image.Image, preprocess: Preprocess) -> np.ndarray:
    """Resize to cover floor(img_size / crop_pct) with the aspect ratio kept, centre crop, normalise; (H, W, C)."""
    image = convert(image, preprocess)
    size = covering_size(image.size, preprocess)
    if size != image.size:
        image = image.resize(size, RESAMPLING[preprocess.interpolation])
    height, width = preprocess.size
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    return normalise(image.crop((left, top, left + width, top + height)), preprocess)


def covering_size(size: tuple[int, int], preprocess: Preprocess) -> tuple[int, int]:
    """Return the (width, height) to which an image of `size` (width, height) is resized before the crop.

    timm rounds in two ways: as torchvision's `Resize` for a square target, else as its own `ResizeKeepRatio`.
    """
    width, height = size
    tall, wide = (math.floor(side / preprocess.crop_pct) for side in preprocess.size)
    if tall == wide:
        return (wide, wide * height // width) if width <= height else (wide * width // height, wide)
    ratio = min(height / tall, width / wide)
    return round(width / ratio), round(height / ratio)


def convert(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    """Convert `image` to RGB, or to gray for one channel."""
    return image.convert("L" if preprocess.in_chans == 1 else "RGB")


def normalise(image: Image.Image, preprocess: Preprocess) -> np.ndarray:
    """Return (pixels / 255 - mean) / std in float32; (H, W, C)."""
    pixels_HxWxC = np.asarray(image, np.float32).reshape(*preprocess.size, preprocess.in_chans) / np.float32(255)
    return (pixels_HxWxC - np.asarray(preprocess.mean, np.float32)) / np.asarray(preprocess.std, np.float32)
