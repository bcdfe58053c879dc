"""The picture of a run: what is drawn, and that it is drawn where the figures say."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from t2t_common.curves import HEIGHT, LEFT, MOST_POINTS, TOP, WIDTH, draw, panels, ticks, write_curves

SVG = "{http://www.w3.org/2000/svg}"
LINES = [
    {"step": 5, "epoch": 0, "loss": 2.0},
    {"step": 10, "epoch": 0, "loss": 1.0},
    {"step": 10, "epoch": 0, "epoch_loss": 1.5},
    {"step": 10, "epoch": 0, "top1": 40.0, "top5": 80.0},
    {"step": 15, "epoch": 1, "loss": 0.5},
    {"step": 20, "epoch": 1, "epoch_loss": 0.75},
    {"step": 20, "epoch": 1, "top1": 60.0, "top5": 90.0},
]


def drawn(svg: str) -> list[list[tuple[float, float]]]:
    """The points of every line."""
    found = ElementTree.fromstring(svg).iter(f"{SVG}polyline")
    pairs = [[point.split(",") for point in line.attrib["points"].split()] for line in found]
    return [[(float(x), float(y)) for x, y in line] for line in pairs]


def test_the_lines_go_through_the_figures():
    steps, epochs, top5, top1 = drawn(draw(panels(LINES, 10), "a run"))
    assert [x for x, _ in steps] == [LEFT + WIDTH * share for share in (0.25, 0.5, 0.75)]
    assert [x for x, _ in epochs] == [x for x, _ in top1] == [LEFT + WIDTH / 2, LEFT + WIDTH]
    # Heights are linear between the lowest and the highest figure of a panel, with 4 % of air at either end.
    (_, high), (_, middle), (_, low) = steps
    assert (high, low) == pytest.approx((TOP + HEIGHT * 0.04 / 1.08, TOP + HEIGHT * 1.04 / 1.08), abs=0.1)
    assert (low - middle) / (low - high) == pytest.approx(1 / 3, abs=0.01)
    assert top5[0][1] < top1[1][1] < top1[0][1]  # 80 above 60 above 40


def test_the_words():
    texts = [text.text for text in ElementTree.fromstring(draw(panels(LINES, 10), "a < b")).iter(f"{SVG}text")]
    assert {"a < b", "epoch", "0.75", "top-1 60.0", "top-5 90.0"} <= set(texts)


def test_labels_do_not_overlap():
    close = [{"step": 10, "epoch": 0, "top1": 99.9, "top5": 100.0}]
    svg = ElementTree.fromstring(draw(panels(close, 10), ""))
    first, second = (float(text.attrib["y"]) for text in svg.iter(f"{SVG}text") if (text.text or "").startswith("top-"))
    assert abs(first - second) >= 15


def test_long_runs_are_averaged():
    steps = [{"step": step, "loss": float(step)} for step in range(1, 5 * MOST_POINTS + 1)]
    (line, *_) = drawn(draw(panels(steps, 100), ""))
    assert len(line) == MOST_POINTS
    assert panels(steps, 1)[0].lines[0].points[0] == (3.0, 3.0)


def test_a_run_of_one_evaluation_and_an_empty_one_can_be_drawn(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(LINES[3]) + "\n")
    path = write_curves(tmp_path, title="t", steps_per_epoch=10)
    assert path == tmp_path / "curves.svg"
    assert len(list(ElementTree.parse(path).iter(f"{SVG}circle"))) == 2
    assert drawn(draw(panels([], 10), ""))[0] == []


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 30, [0, 5, 10, 15, 20, 25, 30]), (0.55, 2.4, [1.0, 1.5, 2.0]), (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]):
    assert ticks(low, high) == pytest.approx(expected)
