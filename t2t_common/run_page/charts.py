"""Compute the charts of a run from the lines of `metrics.jsonl` (see t2t_common/run/reporter.py), for drawing as SVG.

Horizontal positions are in percent and vertical ones in pixels, so a chart fills any width with a fixed text size.
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
"""Vertical scale: "near" spans the smallest to the largest value, "zero" starts at zero, "log" is logarithmic."""

HEIGHT = 190
"""Height of a chart in pixels."""
MOST_POINTS = 800
"""Maximum number of points per line; with more, neighbours are averaged."""
COLUMNS = 60
"""Number of columns of a chart that show their values in a tooltip."""


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a chart, with points (epoch, value).

    Attributes:
        style: CSS class of the line.
        text: Format string for its values.
    """

    name: str
    style: str
    text: str
    points: Sequence[Point]

    @property
    def last(self) -> str:
        """The last value, formatted."""
        return self.text.format(self.points[-1][1])


class Label(NamedTuple):
    """Label at a position on an axis."""

    at: float
    text: str


class Column(NamedTuple):
    """Values of one column of the horizontal axis; `left` and `width` are in percent."""

    left: float
    width: float
    text: str


@dataclasses.dataclass(frozen=True)
class Chart:
    """Chart of lines with a common vertical axis, over the epochs from 0 to `end`."""

    title: str
    lines: Sequence[Line]
    end: float
    scale: Scale = "near"

    def x(self, epoch: float) -> float:
        """Return the horizontal position of `epoch` in percent of the width."""
        return 100 * epoch / self.end

    def y(self, value: float) -> float:
        """Return the vertical position of `value` in pixels from the top."""
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
        """Last values of all lines in each of the `COLUMNS` columns; columns without values are omitted."""
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
        """Return the points of an SVG polyline; the full width is 1000 units."""
        return " ".join(f"{10 * self.x(epoch):.1f},{self.y(value):.1f}" for epoch, value in line.points)

    def _level(self, value: float) -> float:
        return math.log10(value) if self.scale == "log" else value / self._unit

    @functools.cached_property
    def _unit(self) -> float:
        """Divisor for the values, greater than 1 if differences of the largest values would overflow."""
        return 16.0 if any(abs(value) > 1e300 for line in self.lines for _, value in line.points) else 1.0

    @functools.cached_property
    def _limits(self) -> tuple[float, float]:
        """Lower and upper limit of the vertical axis, with a margin."""
        levels = [self._level(value) for line in self.lines for _, value in line.points]
        low, high = min(levels), max(levels)
        if self.scale == "zero":
            return 0.0, 1.06 * high or 1.0
        air = 0.05 * (high - low) or (0.1 if self.scale == "log" else 0.05 * abs(high) or 0.5)
        return low - air, high + air


def charts(lines: Sequence[Mapping[str, Any]], *, steps_per_epoch: float, end: float) -> list[Chart]:
    """Return all charts that have data, over the epochs from 0 to `end`."""

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
    """Reduce `points` to at most `MOST_POINTS` by averaging neighbours."""
    size = math.ceil(len(points) / MOST_POINTS) or 1
    groups = (points[start : start + size] for start in range(0, len(points), size))
    return [(sum(x / len(group) for x, _ in group), sum(y / len(group) for _, y in group)) for group in groups]


def ticks(low: float, high: float) -> list[float]:
    """Return at most seven round values between `low` and `high`."""
    rough = (high - low) / 6
    decade = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * decade for factor in (1, 2, 5, 10) if factor * decade >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in itertools.takewhile(lambda i: i * step <= high + 1e-9 * step, itertools.count(first))]


def log_ticks(low: float, high: float) -> list[float]:
    """Return round values between 10^low and 10^high: powers of ten, with multiples of them if there are few."""
    decades = range(math.floor(low), min(math.ceil(high), 308) + 1)
    step = math.ceil(len(decades) / 7)
    for factors in ((1,), (1, 2, 5), range(1, 10)):
        found = [factor * 10.0**decade for decade in decades[::step] for factor in factors]
        inside = [value for value in found if value > 0 and low <= math.log10(value) <= high]
        if len(inside) >= 3:
            break
    return inside if len(inside) > 1 else ticks(10**low, 10 ** min(high, 308.25))


def tick_text(value: float) -> str:
    """Format a tick value compactly, with thousands separators."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e12 else f"{value:.4g}"
