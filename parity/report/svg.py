"""Plots as inline SVG, without a plotting library.

Horizontal positions are percentages and vertical ones pixels, so that a plot fills any width while its text and marks
keep their size. Everything left of 0 % (the axis labels) is in the margin reserved by the style sheet.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Collection, Iterator, Sequence

from parity.report.markup import Markup, join, tag

HEIGHT = 320.0
"""Height of a plot in pixels."""
LABELS_BELOW = 24.0
"""Space below a plot in pixels, for the labels of the horizontal axis."""
INSET = 2.0
"""Free space on either side of the outermost points, in percent of the width."""


@dataclasses.dataclass(frozen=True)
class Series:
    """A series with one value per position, or None where there is no value.

    Attributes:
        style: CSS class in the style sheet.
        mark: Key of MARKS.
        failed: Positions to mark with a ring.
    """

    label: str
    style: str
    values: Sequence[float | None]
    mark: str | None = None
    line: bool = True
    failed: Collection[int] = ()


MARKS = {
    "dot": "M0 0h.01",  # a round cap makes it a disc
    "ring": "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0 -6 0",
    "square": "M-2.5 -2.5h5v5h-5z",
    "cross": "M-3 -3L3 3M-3 3L3 -3",
    "failed": "M-7 0a7 7 0 1 0 14 0a7 7 0 1 0 -14 0",
}


class LogAxis:
    """Logarithmic axis. Zero is drawn and labelled at the bottom edge, infinity and NaN at the top edge. Negative
    values, which only a damaged report contains, are drawn as zero."""

    def __init__(self, values: Sequence[float]) -> None:
        drawn = [value for value in values if value > 0 and math.isfinite(value)]
        self.zero = any(value == 0 for value in values)
        self.infinite = any(not math.isfinite(value) for value in values)
        # A free decade at either end keeps finite points off the edges, where zero and infinity are drawn.
        self.low = math.floor(math.log10(min(drawn, default=1e-16))) - 1
        self.high = math.ceil(math.log10(max(drawn, default=1.0))) + 1

    def y(self, value: float) -> float:
        """Return the vertical position in pixels from the top."""
        if value <= 0:
            return HEIGHT
        if not math.isfinite(value):
            return 0.0
        return self._y(math.log10(value))

    def _y(self, exponent: float) -> float:
        return HEIGHT * (self.high - exponent) / (self.high - self.low)

    def ticks(self) -> Iterator[tuple[float, str]]:
        """Yield the vertical position and the label of each grid line."""
        step = math.ceil((self.high - self.low) / 10)
        for exponent in range(self.low + 1, self.high, step):
            yield self._y(exponent), f"1e{exponent}"
        if self.zero:
            yield HEIGHT, "0"
        if self.infinite:
            yield 0.0, "∞"


class LinearAxis:
    """Linear axis from the smallest to the largest value; non-finite values are drawn at the top edge."""

    def __init__(self, values: Sequence[float]) -> None:
        drawn = [value for value in values if math.isfinite(value)]
        low, high = min(drawn, default=0.0), max(drawn, default=1.0)
        # Scale down very large values, whose differences would overflow to infinity.
        self.unit = 16.0 if max(abs(low), abs(high)) > 1e300 else 1.0
        low, high = low / self.unit, high / self.unit
        air = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
        self.low, self.high = low - air, high + air

    def y(self, value: float) -> float:
        """Return the vertical position in pixels from the top."""
        if not math.isfinite(value):
            return 0.0
        return HEIGHT * ((self.high - value / self.unit) / (self.high - self.low))

    def ticks(self) -> Iterator[tuple[float, str]]:
        """Yield the vertical position and the label of each grid line."""
        rough = (self.high - self.low) / 6
        decade = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * decade for factor in (1, 2, 5, 10) if factor * decade >= rough)
        for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1):
            value = i * step * self.unit
            if math.isfinite(value):
                yield self.y(value), f"{value:.4g}"


Axis = LogAxis | LinearAxis


def plot(
    series: Sequence[Series],
    names: Sequence[str],
    *,
    axis: type[LogAxis] | type[LinearAxis],
    description: str,
    groups: Sequence[str],
    highlight: int | None = None,
) -> Markup:
    """Return a legend and the plot of `series` over `names`.

    Args:
        names: Name of each position, shown in a tooltip with all values.
        description: Text alternative for screen readers.
        groups: Label of each position; a label is drawn where it first appears if there is room.
        highlight: Position to mark with a vertical line.
    """
    scale = axis([value for s in series for value in s.values if value is not None])
    parts = [*_grid(scale), *_group_lines(groups)]
    if highlight is not None:
        x = _percent(_x(highlight, len(names)))
        parts.append(tag("line", x1=x, x2=x, y1=0, y2=HEIGHT, class_="highlight"))
    parts += itertools.chain.from_iterable(_drawn(s, scale) for s in series)
    parts += [_hover(series, i, name, len(names)) for i, name in enumerate(names)]
    svg = tag("svg", *parts, role="img", aria_label=description, width="100%", height=HEIGHT + LABELS_BELOW)
    return join([_legend(series), tag("div", svg, class_="plot")])


def _x(index: int, count: int) -> float:
    return 50.0 if count == 1 else INSET + (100 - 2 * INSET) * index / (count - 1)


def _percent(x: float) -> str:
    return f"{x:.2f}%"


def _grid(scale: Axis) -> Iterator[Markup]:
    for y, label in scale.ticks():
        yield tag("line", x1=0, x2="100%", y1=y, y2=y, class_="grid")
        yield tag("text", label, x=-6, y=y, dy="0.35em", class_="tick", text_anchor="end")


def _group_lines(groups: Sequence[str]) -> Iterator[Markup]:
    """Yield a line where each group starts, and its label below.

    The style sheet distinguishes two page widths, "wide" and "narrow", each with its own selection of labels.
    """
    starts = [i for i, group in enumerate(groups) if i == 0 or group != groups[i - 1]]
    for i in starts[1:]:
        x = _percent((_x(i, len(groups)) + _x(i - 1, len(groups))) / 2)
        yield tag("line", x1=x, x2=x, y1=0, y2=HEIGHT, class_="grid")
    for pixels, layout in ((900, "wide"), (290, "narrow")):
        for i in _with_room(groups, starts, pixels):
            x = _percent(_x(i, len(groups)))
            yield tag("text", groups[i], x=x, y=HEIGHT + 16, class_=f"tick {layout}")


def _with_room(groups: Sequence[str], starts: Sequence[int], pixels: float) -> list[int]:
    """Return the group starts whose labels fit side by side in a plot of this width; large groups take precedence."""
    sizes = {a: b - a for a, b in itertools.pairwise([*starts, len(groups)])}
    taken: dict[int, tuple[float, float]] = {}
    for i in sorted(starts, key=lambda start: -sizes[start]):
        left = _x(i, len(groups)) * pixels / 100
        right = left + 7 * len(groups[i]) + 8  # a character of 11 px type is about 6 px wide
        if right <= pixels + 16 and all(right <= a or left >= b for a, b in taken.values()):
            taken[i] = (left, right)
    return sorted(taken)


def _drawn(series: Series, scale: Axis) -> Iterator[Markup]:
    """Yield lines between neighbours, then marks, with rings at failed positions."""
    count = len(series.values)
    points = [None if v is None else (_percent(_x(i, count)), scale.y(v)) for i, v in enumerate(series.values)]
    if series.line:
        for a, b in itertools.pairwise(points):
            if a is not None and b is not None:
                yield tag("line", x1=a[0], y1=a[1], x2=b[0], y2=b[1], class_=series.style)
    if series.mark is not None:
        for i, point in enumerate(points):
            if point is not None:
                yield _mark(series.mark, series.style, *point)
                if i in series.failed:
                    yield _mark("failed", "failed", *point)


def _mark(mark: str, style: str, x: str, y: float) -> Markup:
    """Return a mark of constant size at a point given in percent, which requires a nested svg element."""
    return tag("svg", tag("path", d=MARKS[mark], class_=f"mark {mark} {style}"), x=x, y=y, overflow="visible")


def _hover(series: Sequence[Series], index: int, name: str, count: int) -> Markup:
    """Return an invisible column whose tooltip shows the name and all values."""
    width = 100 / max(count, 1)
    figures = [f"{s.label}: {value:.2e}" for s in series if (value := s.values[index]) is not None]
    title = tag("title", "\n".join([name, *figures]))
    left = _percent(_x(index, count) - width / 2)
    return tag("rect", title, x=left, y=0, width=_percent(width), height=HEIGHT, class_="hover")


def _legend(series: Sequence[Series]) -> Markup:
    entries = []
    for s in series:
        line = [tag("line", x1=0, x2=28, y1=8, y2=8, class_=s.style)] if s.line else []
        mark = [_mark(s.mark, s.style, "14", 8.0)] if s.mark else []
        sample = tag("svg", *line, *mark, width=28, height=16, aria_hidden="true")
        entries.append(tag("li", sample, s.label))
    return tag("ul", *entries, class_="legend")
