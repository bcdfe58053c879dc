"""RandAugment on PIL images: every operation matches timm's pixel for pixel (timm/data/auto_augment.py).

Sampling and application are separate: `draw_layers` samples the operations, `apply_layers` is a pure function of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from t2t_config.randaugment import LEVELS, RandAugmentConfig

RANDOM_INTERPOLATION = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
"""Interpolation modes that timm's "random" samples from."""

Fill = tuple[int, ...]
"""Background colour, one value per channel in 0..255."""


class Layer(NamedTuple):
    """One operation with its random parameters."""

    name: str
    """Key of `OPERATIONS`."""
    magnitude: float
    """Sampled strength before clipping, in tenths of the operation's range."""
    negate: bool = False
    """Whether to negate the strength; applies to operations that have two directions."""
    resample: Image.Resampling = Image.Resampling.BICUBIC
    """Interpolation of geometric operations."""


def draw_layers(
    config: RandAugmentConfig,
    rng: np.random.Generator,
    interpolation: Sequence[Image.Resampling] = RANDOM_INTERPOLATION,
) -> list[Layer]:
    """Sample the operations for one image by timm's rule; operations skipped by `config.prob` are left out.

    Geometric operations use a mode sampled from `interpolation`.
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
    """Apply `layers` in order to `image` (RGB or L), with strengths clipped to 0..limit; keep size and mode."""
    for layer in layers:
        image = OPERATIONS[layer.name](image, strength_of(layer, limit), layer, fill)
    return image


def strength_of(layer: Layer, limit: float = LEVELS) -> float:
    """Return the magnitude, clipped to 0..limit, as a fraction of the operation's range."""
    return min(max(layer.magnitude, 0.0), limit) / LEVELS


def fill_colour(mean: Sequence[float]) -> Fill:
    """Convert a pixel mean in 0..1 to a colour."""
    return tuple(min(255, round(255 * figure)) for figure in mean)


# --- Operations ---------------------------------------------------------------------------------------------
# (image, strength in 0..1, layer with direction and interpolation, background colour) -> image

Operation = Callable[[Image.Image, float, Layer, Fill], Image.Image]


def signed(strength: float, layer: Layer) -> float:
    """Return `strength` with the sampled sign."""
    return -strength if layer.negate else strength


def _colour_of(image: Image.Image, fill: Fill) -> int | Fill:
    return fill[0] if image.mode == "L" else fill


def _affine(coefficients: Callable[[Image.Image, float], tuple[float, ...]]) -> Operation:
    """Create an affine operation from the coefficients of the map from output to input."""

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
    """Create an operation that keeps the `bits(level)` high bits of each pixel."""

    def operation(image: Image.Image, strength: float, layer: Layer, fill: Fill) -> Image.Image:
        kept = bits(int(strength * 4))
        if kept < 1:  # black, as in the Pillow of the time; newer versions raise an error
            return Image.new(image.mode, image.size)
        return image if kept >= 8 else ImageOps.posterize(image, kept)

    return operation


def _solarize(threshold: Callable[[int], int]) -> Operation:
    """Create an operation that inverts pixels at or above the threshold."""

    def operation(image: Image.Image, strength: float, layer: Layer, fill: Fill) -> Image.Image:
        return ImageOps.solarize(image, threshold(min(256, int(strength * 256))))

    return operation


def _solarize_add(image: Image.Image, strength: float, layer: Layer, fill: Fill) -> Image.Image:
    """Brighten pixels below 128."""
    added = min(128, int(strength * 110))
    table = [min(255, value + added) if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


def _enhance(enhancer: Callable[[Image.Image], ImageEnhance._Enhance], *, increasing: bool) -> Operation:
    """Create an operation that blends the image with a degraded version of itself.

    Factor 0 gives the degraded version, 1 the image; above 1 the blend is extrapolated.
    """

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
"""All operations by their timm names."""

_ALWAYS = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "SolarizeAdd"),
    *("ShearX", "ShearY", "TranslateXRel", "TranslateYRel"),
)
_EITHER = ("Posterize", "Solarize", *_ENHANCERS)

PLAIN = (*_ALWAYS, *_EITHER)
"""Operations used with `inc0`."""
INCREASING = (*_ALWAYS, *(f"{name}Increasing" for name in _EITHER))
"""Operations used with `inc1`."""
