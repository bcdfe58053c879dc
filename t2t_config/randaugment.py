"""RandAugment (arXiv 1909.13719) with timm's configuration strings, for example `rand-m9-mstd0.5-inc1`."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

LEVELS = 10.0
"""Number of magnitude levels: magnitudes are tenths of an operation's range."""


@dataclasses.dataclass(frozen=True)
class RandAugmentConfig:
    """Strength and frequency of the RandAugment operations."""

    magnitude: int = 10
    """Mean strength of an operation, in tenths of its range."""
    num_layers: int = 2
    """Number of operations sampled for each image, with replacement."""
    prob: float = 0.5
    """Probability that a sampled operation is applied."""
    magnitude_std: float = 0.0
    """Standard deviation of the strength; infinite samples it uniformly from 0 to `magnitude`."""
    magnitude_max: int | None = None
    """Maximum strength; None is 10."""
    increasing: bool = False
    """Whether the effect of every operation increases with its strength."""

    @property
    def limit(self) -> float:
        """Maximum strength of an operation."""
        return self.magnitude_max or LEVELS

    @classmethod
    def parse(cls, text: str) -> RandAugmentConfig:
        """Parse `rand`, followed in any order and joined by dashes by: m9 (magnitude), n2 (layers), p0.5 (probability),
        mstd0.5 (standard deviation; above 100 infinite), mmax15 (limit), inc1 (increasing).

        The format is that of timm's `rand_augment_transform`, without its sets of weighted operations. timm ignores
        unknown parts in some places; here they are an error.

        Raises:
            ValueError: If a part is unknown or occurs twice.
        """
        kind, *parts = text.split("-")
        if kind != "rand":
            raise ValueError(
                f"{text!r} is not a RandAugment configuration: begin with 'rand', as in rand-m9-mstd0.5-inc1"
            )
        figures: dict[str, Any] = {}
        for part in parts:
            match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
            name, read = _PARTS.get(match[1], ("", str)) if match else ("", str)
            if match is None or not name or name in figures:
                problem = "comes twice" if name in figures else "is unknown"
                raise ValueError(f"{part!r} of {text!r} {problem}: choose from {', '.join(_PARTS)}, each with a number")
            try:
                figures[name] = read(match[2])
            except ValueError:
                raise ValueError(f"{part!r} of {text!r} needs a whole number") from None
        config = cls(**figures)
        if not config.prob <= 1:
            raise ValueError(f"the probability in {text!r} must lie in [0, 1]")
        return config


def _deviation(text: str) -> float:
    return math.inf if float(text) > 100 else float(text)


_PARTS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "m": ("magnitude", int),
    "n": ("num_layers", int),
    "p": ("prob", float),
    "mstd": ("magnitude_std", _deviation),
    "mmax": ("magnitude_max", int),
    "inc": ("increasing", lambda text: bool(int(text))),
}
