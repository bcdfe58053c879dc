"""The picture of `tools.benchmarks.speed`: a bar for every contestant, and where matrix products alone would end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from t2t_common.pages import render

WIDTH, LEFT, RIGHT, ROW, HEAD, TOP = 760, 230, 110, 30, 46, 16


def chart(report: dict[str, Any]) -> str:
    """A report of `tools.benchmarks.speed` as SVG."""
    panels, top = [], TOP
    for task, found in report["tasks"].items():
        panels.append(_panel(task, found, top))
        top = panels[-1]["bottom"] + 26
    model = report["setup"]["model"]
    return render("chart.svg", folder=Path(__file__).parent, panels=panels, height=top, model=model, left=LEFT)


def _panel(task: str, found: dict[str, Any], top: int) -> dict[str, Any]:
    speeds = {name: figures["images_a_second"] for name, figures in found["contestants"].items()}
    limit, first = found["limit_images_a_second"], top + HEAD
    scale = (WIDTH - LEFT - RIGHT) / max(limit, *speeds.values())
    bars = [
        {
            "name": name,
            "kind": "ours" if name.startswith("t2t_") else "other",
            "y": first + ROW * i,
            "length": speed * scale,
            "value": speed,
        }
        for i, (name, speed) in enumerate(speeds.items())
    ]
    place = {"top": top, "first": first, "bottom": first + ROW * len(bars), "x": LEFT + limit * scale}
    return {"task": task, "bars": bars, "limit": limit, **place}
