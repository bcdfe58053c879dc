"""The curves of a run, from the lines of `metrics.jsonl` (see report.py), ready to be drawn as SVG.

Horizontal positions are per cent and vertical ones pixels, so that a chart fills any width and its text keeps its size.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

Point = tuple[float, float]
Scale = Literal["near", "zero", "log"]
"""From the smallest value to the largest, from zero, or by powers of ten."""

HEIGHT = 190
"""Pixels from the top to the bottom edge of a chart."""
MOST_POINTS = 800
"""Points of one line; of more, neighbours are averaged."""
COLUMNS = 60
"""Parts of a chart that show their figures where the pointer is."""


@dataclasses.dataclass(frozen=True)
class Line:
    """Points (epoch, value).

    Attributes:
        style: its class in the style sheet.
        text: a format of its values.
    """

    name: str
    style: str
    text: str
    points: Sequence[Point]

    @property
    def last(self) -> str:
        """Its last value, in words."""
        return self.text.format(self.points[-1][1])


class Label(NamedTuple):
    """Text at a place of an axis."""

    at: float
    text: str


class Column(NamedTuple):
    """Figures of a part of the horizontal axis, in per cent."""

    left: float
    width: float
    text: str


@dataclasses.dataclass(frozen=True)
class Chart:
    """Lines over one vertical axis and the epochs from 0 to `end`."""

    title: str
    lines: Sequence[Line]
    end: float
    scale: Scale = "near"

    def x(self, epoch: float) -> float:
        """Per cent of the width."""
        return 100 * epoch / self.end

    def y(self, value: float) -> float:
        """Pixels from the top."""
        low, high = self._limits
        return HEIGHT * ((high - self._level(value)) / (high - low))

    @property
    def x_labels(self) -> list[Label]:
        return [Label(self.x(epoch), f"{epoch:g}") for epoch in ticks(0.0, self.end)]

    @property
    def y_labels(self) -> list[Label]:
        low, high = self._limits
        values = log_ticks(low, high) if self.scale == "log" else [self._unit * value for value in ticks(low, high)]
        return [Label(self.y(value), tick_text(value)) for value in values if math.isfinite(value)]

    @property
    def columns(self) -> list[Column]:
        """The last figures in each of `COLUMNS` parts of the chart that has any."""
        found: dict[int, list[tuple[float, str]]] = {}
        for line in self.lines:
            of_line = {math.ceil(COLUMNS * epoch / self.end): (epoch, value) for epoch, value in line.points}
            for column, (epoch, value) in of_line.items():
                found.setdefault(column, []).append((epoch, f"{line.name}: {line.text.format(value)}"))
        width = 100 / COLUMNS
        return [
            Column(width * (column - 1), width, "\n".join([f"epoch {max(figures)[0]:.4g}", *(t for _, t in figures)]))
            for column, figures in sorted(found.items())
        ]

    def path(self, line: Line) -> str:
        """The points of a polyline; 1000 are the whole width."""
        return " ".join(f"{10 * self.x(epoch):.1f},{self.y(value):.1f}" for epoch, value in line.points)

    def _level(self, value: float) -> float:
        return math.log10(value) if self.scale == "log" else value / self._unit

    @functools.cached_property
    def _unit(self) -> float:
        """More than 1 where the distances of the largest numbers would be infinite."""
        return 16.0 if any(abs(value) > 1e300 for line in self.lines for _, value in line.points) else 1.0

    @functools.cached_property
    def _limits(self) -> tuple[float, float]:
        """What is at the bottom and at the top, with some air."""
        levels = [self._level(value) for line in self.lines for _, value in line.points]
        low, high = min(levels), max(levels)
        if self.scale == "zero":
            return 0.0, 1.06 * high or 1.0
        air = 0.05 * (high - low) or (0.1 if self.scale == "log" else 0.05 * abs(high) or 0.5)
        return low - air, high + air


def charts(lines: Sequence[Mapping[str, Any]], *, steps_per_epoch: float, end: float) -> list[Chart]:
    """All charts for which there are figures, over the epochs from 0 to `end`."""

    def line(name: str, figure: str, style: str, text: str, of: Callable[[float], float] = float) -> Line:
        points = [(line["step"] / steps_per_epoch, of(line[figure])) for line in lines if figure in line]
        return Line(name, style, text, thinned(points))

    def percent(share: float) -> float:
        return 100 * share

    norm = line("gradient norm", "grad_norm", "main", "{:.3g}")
    norm = dataclasses.replace(norm, points=[(epoch, value) for epoch, value in norm.points if value > 0])
    wanted: list[tuple[str, Scale, list[Line]]] = [
        (
            "Training loss",
            "near",
            [line("single steps", "loss", "light", "{:.4g}"), line("mean of epoch", "epoch_loss", "main", "{:.4g}")],
        ),
        (
            "Accuracy on the validation images, %",
            "near",
            [line("top-5", "top5", "second", "{:.2f} %"), line("top-1", "top1", "main", "{:.2f} %")],
        ),
        ("Learning rate", "zero", [line("learning rate", "lr", "main", "{:.3g}")]),
        ("Norm of the gradient, before clipping", "log", [norm]),
        ("Throughput, images per second", "zero", [line("images/s", "images_per_second", "main", "{:,.0f}")]),
        ("Waiting for data, % of the time", "zero", [line("waiting", "data_wait", "main", "{:.1f} %", percent)]),
        ("Use of the devices' peak FLOP/s (MFU), %", "zero", [line("MFU", "mfu", "main", "{:.1f} %", percent)]),
    ]
    found = [(title, scale, [line for line in drawn if line.points]) for title, scale, drawn in wanted]
    return [Chart(title, drawn, end, scale) for title, scale, drawn in found if drawn]


def thinned(points: list[Point]) -> list[Point]:
    """At most `MOST_POINTS`, each the mean of its neighbours."""
    size = math.ceil(len(points) / MOST_POINTS) or 1
    groups = (points[start : start + size] for start in range(0, len(points), size))
    return [(sum(x / len(group) for x, _ in group), sum(y / len(group) for _, y in group)) for group in groups]


def ticks(low: float, high: float) -> list[float]:
    """At most seven round values between `low` and `high`."""
    rough = (high - low) / 6
    decade = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * decade for factor in (1, 2, 5, 10) if factor * decade >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in itertools.takewhile(lambda i: i * step <= high + 1e-9 * step, itertools.count(first))]


def log_ticks(low: float, high: float) -> list[float]:
    """Round values between 10^low and 10^high: powers of ten, or 1, 2, 5 times them where there are few."""
    decades = range(math.floor(low), min(math.ceil(high), 308) + 1)
    step = math.ceil(len(decades) / 7)
    for factors in ((1,), (1, 2, 5), range(1, 10)):
        found = [factor * 10.0**decade for decade in decades[::step] for factor in factors]
        inside = [value for value in found if value > 0 and low <= math.log10(value) <= high]
        if len(inside) >= 3:
            break
    return inside if len(inside) > 1 else ticks(10**low, 10 ** min(high, 308.25))


def tick_text(value: float) -> str:
    """Short, with commas in thousands."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e12 else f"{value:.4g}"
