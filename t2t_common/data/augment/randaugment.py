"""RandAugment on PIL images: every operation is timm's, pixel for pixel (timm/data/auto_augment.py).

Drawing and changing are apart: `draw_layers` decides, `apply_layers` is a pure function of what was decided.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from t2t_config.randaugment import LEVELS, RandAugmentConfig

RANDOM_INTERPOLATION = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
"""What timm's interpolation "random" draws from."""

Fill = tuple[int, ...]
"""Colour of what comes into view, one figure per channel, 0..255."""


class Layer(NamedTuple):
    """One operation with all that chance decides about it."""

    name: str
    """Of `OPERATIONS`."""
    magnitude: float
    """Strength as drawn, in tenths of the operation's range, before it is clipped."""
    negate: bool = False
    """Turns the direction of operations that have two."""
    resample: Image.Resampling = Image.Resampling.BICUBIC
    """Of operations that move pixels."""


def draw_layers(
    config: RandAugmentConfig,
    rng: np.random.Generator,
    interpolation: Sequence[Image.Resampling] = RANDOM_INTERPOLATION,
) -> list[Layer]:
    """The operations that one image goes through, by timm's rule; those that its coin decides against are left out.

    Operations that move pixels draw one of `interpolation`.
    """
    names = INCREASING if config.increasing else PLAIN
    layers = []
    for index in rng.integers(len(names), size=config.num_layers):
        if rng.random() >= config.prob:
            continue
        magnitude: float = config.magnitude
        if config.magnitude_std == float("inf"):
            magnitude = rng.uniform(0, magnitude)
        elif config.magnitude_std > 0:
            magnitude = rng.normal(magnitude, config.magnitude_std)
        negate, resample = rng.random() < 0.5, interpolation[int(rng.integers(len(interpolation)))]
        layers.append(Layer(names[index], magnitude, negate, resample))
    return layers


def apply_layers(image: Image.Image, layers: Sequence[Layer], *, limit: float = LEVELS, fill: Fill) -> Image.Image:
    """`image` (RGB or L) after the operations in their order, strengths clipped to 0..limit; same size and mode."""
    for layer in layers:
        image = OPERATIONS[layer.name](image, strength_of(layer, limit), layer, fill)
    return image


def strength_of(layer: Layer, limit: float = LEVELS) -> float:
    """Share of the operation's range; the magnitude clipped to 0..limit."""
    return min(max(layer.magnitude, 0.0), limit) / LEVELS


def fill_colour(mean: Sequence[float]) -> Fill:
    """The mean of the pixels, in 0..1, as a colour."""
    return tuple(min(255, round(255 * figure)) for figure in mean)


# --- Operations ---------------------------------------------------------------------------------------------
# (image, strength in 0..1, signs and interpolation, colour of the background) -> image

Operation = Callable[[Image.Image, float, Layer, Fill], Image.Image]


def signed(strength: float, layer: Layer) -> float:
    """`strength` in the direction that was drawn."""
    return -strength if layer.negate else strength


def _colour_of(image: Image.Image, fill: Fill) -> int | Fill:
    return fill[0] if image.mode == "L" else fill


def _affine(coefficients: Callable[[Image.Image, float], tuple[float, ...]]) -> Operation:
    """Moves pixels by the map from output to input."""

    def operation(image: Image.Image, strength: float, layer: Layer, fill: Fill) -> Image.Image:
        return image.transform(
            image.size,
            Image.Transform.AFFINE,
            coefficients(image, signed(strength, layer)),
            resample=layer.resample,
            fillcolor=_colour_of(image, fill),
        )

    return operation


def _rotate(image: Image.Image, strength: float, layer: Layer, fill: Fill) -> Image.Image:
    degrees = signed(strength * 30.0, layer)
    return image.rotate(degrees, resample=layer.resample, fillcolor=_colour_of(image, fill))


def _plain(change: Callable[[Image.Image], Image.Image]) -> Operation:
    return lambda image, strength, layer, fill: change(image)


def _posterize(bits: Callable[[int], int]) -> Operation:
    """Keeps so many of the high bits of each pixel."""

    def operation(image: Image.Image, strength: float, layer: Layer, fill: Fill) -> Image.Image:
        kept = bits(int(strength * 4))
        if kept < 1:  # black, as Pillow had it when the recipes were made; by now it refuses
            return Image.new(image.mode, image.size)
        return image if kept >= 8 else ImageOps.posterize(image, kept)

    return operation


def _solarize(threshold: Callable[[int], int]) -> Operation:
    """Inverts pixels from the threshold on."""

    def operation(image: Image.Image, strength: float, layer: Layer, fill: Fill) -> Image.Image:
        return ImageOps.solarize(image, threshold(min(256, int(strength * 256))))

    return operation


def _solarize_add(image: Image.Image, strength: float, layer: Layer, fill: Fill) -> Image.Image:
    """Brightens pixels below 128."""
    added = min(128, int(strength * 110))
    table = [min(255, value + added) if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


def _enhance(enhancer: Callable[[Image.Image], ImageEnhance._Enhance], *, increasing: bool) -> Operation:
    """Mixes the image with a dull version of itself: factor 0 is that, 1 the image, above 1 goes beyond."""

    def operation(image: Image.Image, strength: float, layer: Layer, fill: Fill) -> Image.Image:
        factor = max(0.1, 1.0 + signed(strength * 0.9, layer)) if increasing else strength * 1.8 + 0.1
        return enhancer(image).enhance(factor)

    return operation


_ENHANCERS: Mapping[str, Callable[[Image.Image], ImageEnhance._Enhance]] = {
    "Color": ImageEnhance.Color,
    "Contrast": ImageEnhance.Contrast,
    "Brightness": ImageEnhance.Brightness,
    "Sharpness": ImageEnhance.Sharpness,
}

OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        "AutoContrast": _plain(ImageOps.autocontrast),
        "Equalize": _plain(ImageOps.equalize),
        "Invert": _plain(ImageOps.invert),
        "Rotate": _rotate,
        "Posterize": _posterize(lambda level: level),
        "PosterizeIncreasing": _posterize(lambda level: 4 - level),
        "Solarize": _solarize(lambda level: level),
        "SolarizeIncreasing": _solarize(lambda level: 256 - level),
        "SolarizeAdd": _solarize_add,
        **{name: _enhance(enhancer, increasing=False) for name, enhancer in _ENHANCERS.items()},
        **{f"{name}Increasing": _enhance(enhancer, increasing=True) for name, enhancer in _ENHANCERS.items()},
        "ShearX": _affine(lambda image, strength: (1, strength * 0.3, 0, 0, 1, 0)),
        "ShearY": _affine(lambda image, strength: (1, 0, 0, strength * 0.3, 1, 0)),
        "TranslateXRel": _affine(lambda image, strength: (1, 0, strength * 0.45 * image.width, 0, 1, 0)),
        "TranslateYRel": _affine(lambda image, strength: (1, 0, 0, 0, 1, strength * 0.45 * image.height)),
    }
)
"""Every operation by timm's name."""

_ALWAYS = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "SolarizeAdd"),
    *("ShearX", "ShearY", "TranslateXRel", "TranslateYRel"),
)
_EITHER = ("Posterize", "Solarize", *_ENHANCERS)

PLAIN = (*_ALWAYS, *_EITHER)
"""Operations of `inc0`."""
INCREASING = (*_ALWAYS, *(f"{name}Increasing" for name in _EITHER))
"""Operations of `inc1`."""
