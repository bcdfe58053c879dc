"""Loss and accuracy of a run as a picture, `curves.svg` in its workdir, drawn from `metrics.jsonl`."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from t2t_common.files import write_text
from t2t_common.writers import METRICS_FILE

CURVES_FILE = "curves.svg"

Point = tuple[float, float]

WIDTH, HEIGHT = 840, 240
LEFT, TOP, GAP, RIGHT, BOTTOM = 64, 74, 52, 100, 48
MOST_POINTS = 800
"""Points of one line; of more, neighbours are averaged."""
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #57606a }
.title { font-size: 16px; fill: #1f2328 } .name { fill: #1f2328 }
.grid { stroke: #d8dee4 } polyline { fill: none; stroke-width: 2; stroke-linejoin: round }
.light { stroke: #9ec5fe; stroke-width: 1 } .dark { stroke: #0b57d0 } .second { stroke: #c4620a }
""".strip()


class Line(NamedTuple):
    """Points (epoch, value); `label`, a format of the last value, stands at its end."""

    style: str
    label: str
    points: list[Point]


class Panel(NamedTuple):
    """Lines over one vertical axis."""

    name: str
    lines: list[Line]


def write_curves(workdir: Path, *, title: str, steps_per_epoch: int) -> Path:
    """Draws what `workdir/metrics.jsonl` holds so far; the picture's path.

    Raises:
        ValueError: it cannot be written.
    """
    path = workdir / CURVES_FILE
    lines = [json.loads(line) for line in (workdir / METRICS_FILE).read_text().splitlines()]
    write_text(path, draw(panels(lines, steps_per_epoch), title))
    return path


def panels(lines: Sequence[dict[str, Any]], steps_per_epoch: int) -> list[Panel]:
    """What is drawn, from the lines of `metrics.jsonl` (see report.py)."""

    def points(name: str) -> list[Point]:
        found = [(line["step"] / steps_per_epoch, float(line[name])) for line in lines if name in line]
        return list(_thinned(found))

    loss = [Line("light", "", points("loss")), Line("dark", "{:.4g}", points("epoch_loss"))]
    accuracy = [Line("second", "top-5 {:.1f}", points("top5")), Line("dark", "top-1 {:.1f}", points("top1"))]
    return [
        Panel("training loss: of single steps (light), mean of each epoch (dark)", loss),
        Panel("accuracy on the validation images, %", accuracy),
    ]


def _thinned(points: list[Point]) -> Iterator[Point]:
    size = math.ceil(len(points) / MOST_POINTS) or 1
    for start in range(0, len(points), size):
        group = points[start : start + size]
        yield sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)


def draw(panels: Sequence[Panel], title: str) -> str:
    """A whole SVG file: the panels below each other over one axis of epochs."""
    last = max((x for panel in panels for line in panel.lines for x, _ in line.points), default=1.0)
    width = LEFT + WIDTH + RIGHT
    height = TOP + len(panels) * (HEIGHT + GAP) - GAP + BOTTOM
    parts = [_text(LEFT, 26, title, "title")]
    for i, panel in enumerate(panels):
        parts += _drawn(panel, TOP + i * (HEIGHT + GAP), last)
    bottom = height - BOTTOM
    parts += [_text(LEFT + WIDTH * x / last, bottom + 18, f"{x:g}", "", "middle") for x in ticks(0.0, last)]
    parts.append(_text(LEFT + WIDTH / 2, bottom + 38, "epoch", "name", "middle"))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">\n'
        f'<style>{STYLE}</style>\n<rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n'
    )


def _drawn(panel: Panel, top: float, last: float) -> Iterator[str]:
    values = [y for line in panel.lines for _, y in line.points]
    low, high = min(values, default=0.0), max(values, default=1.0)
    air = 0.04 * (high - low) or 0.5
    low, high = low - air, high + air

    def y_of(value: float) -> float:
        return top + HEIGHT * (high - value) / (high - low)

    yield _text(LEFT, top - 9, panel.name, "name")
    for value in ticks(low, high):
        y = y_of(value)
        yield f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
        yield _text(LEFT - 8, y + 4.5, f"{value:.4g}", "", "end")
    labels: list[tuple[float, str]] = []
    for line in panel.lines:
        points = [(LEFT + WIDTH * x / last, y_of(y)) for x, y in line.points]
        if len(points) == 1:
            yield f'<circle cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="3" class="{line.style}"/>'
        yield f'<polyline class="{line.style}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'
        if line.label and points:
            labels.append((points[-1][1] + 4.5, line.label.format(line.points[-1][1])))
    labels.sort()
    for i, (y, label) in enumerate(labels):  # 15 pixels apart at least
        above = [labels[j][0] + 15 * (i - j) for j in range(i)]
        yield _text(LEFT + WIDTH + 6, max([y, *above]), label, "name")


def ticks(low: float, high: float) -> list[float]:
    """At most seven round values between `low` and `high`."""
    rough = (high - low) / 6
    decade = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * decade for factor in (1, 2, 5, 10) if factor * decade >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in itertools.takewhile(lambda i: i * step <= high + 1e-9 * step, itertools.count(first))]


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'
