"""Where things are drawn."""

from __future__ import annotations

import itertools
import math
import re

import pytest

from parity.report.svg import HEIGHT, LinearAxis, LogAxis, Series, plot


def test_a_log_axis_spaces_decades_evenly_and_upwards() -> None:
    axis = LogAxis([1e-16, 1e-3])
    steps = [axis.y(10.0**-k) - axis.y(10.0 ** -(k - 1)) for k in range(4, 17)]
    assert steps == pytest.approx([steps[0]] * len(steps))
    assert steps[0] > 0


def test_zero_infinity_and_nan_have_the_edges_for_themselves() -> None:
    axis = LogAxis([0.0, 1e-16, 1e-3, math.inf])
    assert (axis.y(0.0), axis.y(math.inf), axis.y(math.nan)) == (HEIGHT, 0.0, 0.0)
    assert 0 < axis.y(1e-3) < axis.y(1e-16) < HEIGHT
    assert axis.y(-1e12) == HEIGHT  # of a damaged report
    assert {label: y for y, label in axis.ticks() if not label.startswith("1e")} == {"0": HEIGHT, "∞": 0.0}
    assert {label for _, label in LogAxis([1e-16]).ticks()} & {"0", "∞"} == set()


EXTREMES = ([1.1e308, -1.1e308], [1.7e308, -1.7e308, 0.0], [1.1e308], [-1.7e308], [3e17], [5e-324, 1.7e308], [-5e-324])


@pytest.mark.parametrize("values", [[], [0.0], [math.inf], [1e-300, 1e300], [5.0], *EXTREMES])
@pytest.mark.parametrize("kind", [LogAxis, LinearAxis])
def test_every_axis_has_a_few_ticks_inside(kind, values) -> None:
    ticks = list(kind(values).ticks())
    assert 2 <= len(ticks) <= 13
    assert all(0 <= y <= HEIGHT for y, _ in ticks)


def test_a_linear_axis_holds_its_values() -> None:
    axis = LinearAxis([2.0, 3.0])
    assert 0 < axis.y(3.0) < axis.y(2.5) < axis.y(2.0) < HEIGHT


@pytest.mark.parametrize("values", EXTREMES)
def test_the_largest_numbers_are_drawn_inside_and_in_order(values: list[float]) -> None:
    axis = LinearAxis(values)
    heights = [axis.y(value) for value in sorted(values)]
    assert all(0 < height < HEIGHT for height in heights)
    assert heights == sorted(heights, reverse=True)
    assert all("inf" not in label for _, label in axis.ticks())


def drawn(values: list[float | None], **options) -> str:
    series = Series("error", "jax32", values, "square", **options)
    names = [f"layer {i}" for i in range(len(values))]
    return plot([series], names, axis=LogAxis, description="d", groups=["all"] * len(values))


def test_every_value_has_a_mark_and_neighbours_a_line() -> None:
    text = drawn([1e-7, None, 1e-6, 1e-5], failed=[2])
    legend, picture = text.split('<div class="plot">')
    assert picture.count("mark square jax32") == 3
    assert len(re.findall(r'<line [^>]*class="jax32"', picture)) == 1
    assert picture.count("mark failed") == 1
    assert legend.count("mark square jax32") == 1


def test_each_position_tells_its_figures() -> None:
    text = drawn([1e-7, None])
    assert "<title>layer 0\nerror: 1.00e-07</title>" in text
    assert "<title>layer 1</title>" in text


def test_labels_do_not_overlap_and_large_groups_go_first() -> None:
    groups = ["small"] + ["a_group_of_many"] * 30 + ["tiny"]
    text = plot([Series("e", "jax32", [1e-7] * 32)], groups, axis=LogAxis, description="d", groups=groups)
    labels = re.findall(r'<text x="([\d.]+)%"[^>]*class="tick (wide|narrow)">(\w+)', text)
    assert {name for _, _, name in labels} >= {"a_group_of_many"}
    for layout, pixels in (("wide", 900), ("narrow", 290)):
        ends = [(float(x) * pixels / 100, len(name) * 6) for x, kind, name in labels if kind == layout]
        assert all(a + width <= b for (a, width), (b, _) in itertools.pairwise(ends))
