"""The curves of a run: which are drawn, and that they are drawn where the figures say."""

from __future__ import annotations

import math

import pytest

from t2t_common.run_page.charts import COLUMNS, HEIGHT, MOST_POINTS, Chart, Line, charts, log_ticks, tick_text, ticks

LINES = [
    {"step": 5, "epoch": 0, "loss": 2.0, "lr": 0.1, "grad_norm": 10.0},
    {"step": 10, "epoch": 0, "loss": 1.0, "lr": 0.1, "grad_norm": 1000.0, "images_per_second": 7.0, "data_wait": 0.25},
    {"step": 10, "epoch": 0, "epoch_loss": 1.5},
    {"step": 10, "epoch": 0, "top1": 40.0, "top5": 80.0},
    {"step": 15, "epoch": 1, "loss": 0.5, "lr": 0.05, "grad_norm": 0.0},
    {"step": 20, "epoch": 1, "epoch_loss": 0.75},
    {"step": 20, "epoch": 1, "top1": 60.0, "top5": 90.0},
]


def drawn(chart: Chart, line: int) -> list[tuple[float, float]]:
    """The points of a polyline."""
    pairs = [point.split(",") for point in chart.path(chart.lines[line]).split()]
    return [(float(x), float(y)) for x, y in pairs]


def test_the_lines_go_through_the_figures():
    loss, accuracy, *_ = charts(LINES, steps_per_epoch=10, end=2.0)
    steps, epochs, top5, top1 = drawn(loss, 0), drawn(loss, 1), drawn(accuracy, 0), drawn(accuracy, 1)
    assert [x for x, _ in steps] == [250, 500, 750]
    assert [x for x, _ in epochs] == [x for x, _ in top1] == [500, 1000]
    # Heights are linear between the lowest and the highest figure, with 5 % of air at either end.
    (_, high), (_, middle), (_, low) = steps
    assert (high, low) == pytest.approx((HEIGHT * 0.05 / 1.1, HEIGHT * 1.05 / 1.1), abs=0.1)
    assert (low - middle) / (low - high) == pytest.approx(1 / 3, abs=0.01)
    assert top5[0][1] < top1[1][1] < top1[0][1]  # 80 above 60 above 40


def test_every_figure_has_its_chart_and_what_is_not_there_has_none():
    found = {chart.title: chart for chart in charts(LINES, steps_per_epoch=10, end=2.0)}
    assert len(found) == 6
    assert not [title for title in found if "MFU" in title]
    assert found["Waiting for data, % of the time"].lines[0].points == [(1.0, 25.0)]
    assert found["Learning rate"].lines[0].last == "0.05"
    assert charts([], steps_per_epoch=1, end=1.0) == []
    (only,) = charts([{"step": 3, "mfu": 0.5}], steps_per_epoch=1, end=3.0)
    assert only.lines[0].last == "50.0 %"


def test_norms_are_drawn_by_powers_of_ten_and_a_norm_of_zero_is_left_out():
    norm = charts(LINES, steps_per_epoch=10, end=2.0)[3]
    assert len(norm.lines[0].points) == 2
    assert norm.y(100.0) == pytest.approx((norm.y(10.0) + norm.y(1000.0)) / 2)
    assert [label.text for label in norm.y_labels] == ["10", "100", "1,000"]
    assert [label.at for label in norm.y_labels] == pytest.approx([norm.y(10.0), norm.y(100.0), norm.y(1000.0)])


def test_rates_begin_at_zero():
    throughput = charts(LINES, steps_per_epoch=10, end=2.0)[4]
    assert throughput.y(0.0) == HEIGHT
    assert 0 < throughput.y(7.0) < HEIGHT / 10


@pytest.mark.parametrize("scale", ["near", "zero", "log"])
@pytest.mark.parametrize("value", [1.0, 1e-30, 12345.0])
def test_a_line_that_never_changes_can_be_drawn(scale, value: float):
    chart = Chart("", [Line("a", "main", "{}", [(1.0, value), (2.0, value)])], 2.0, scale)
    assert 0 <= chart.y(value) <= HEIGHT
    assert all(-1 <= label.at <= HEIGHT + 1 for label in chart.y_labels)
    zero = Chart("", [Line("a", "main", "{}", [(1.0, 0.0)])], 1.0, "zero")
    assert zero.y(0.0) == HEIGHT


@pytest.mark.parametrize("scale", ["near", "zero", "log"])
@pytest.mark.parametrize("values", [(1e308, -1e308), (1.7e308, -1.7e308), (1e308, 1e308), (5e-324, 1.7e308)])
def test_the_largest_numbers_can_be_drawn(scale, values: tuple[float, float]):
    if scale != "near":
        values = (abs(values[0]), abs(values[1]))
    chart = Chart("", [Line("a", "main", "{:.3g}", [(1.0, values[0]), (2.0, values[1])])], 2.0, scale)
    assert all(-1 <= chart.y(value) <= HEIGHT + 1 for value in values)
    assert all(-1 <= label.at <= HEIGHT + 1 and len(label.text) < 20 for label in chart.y_labels)
    assert "inf" not in chart.path(chart.lines[0]) + "".join(label.text for label in chart.y_labels)
    (thin,) = charts([{"step": i, "loss": 1.7e308} for i in range(3000)], steps_per_epoch=1, end=3000)
    assert [value for _, value in thin.lines[0].points] == pytest.approx([1.7e308] * 750)


def test_columns_tell_the_last_figures_of_their_part():
    loss = charts(LINES, steps_per_epoch=10, end=2.0)[0]
    assert [column.text for column in loss.columns][1] == "epoch 1\nsingle steps: 1\nmean of epoch: 1.5"
    for column, epoch in zip(loss.columns, (0.5, 1, 1.5, 2), strict=True):
        assert column.left + column.width == pytest.approx(50 * epoch)
    many = Chart("", [Line("a", "main", "{:g}", [(i / 100, float(i)) for i in range(1, 1001)])], 10.0)
    assert len(many.columns) == COLUMNS


def test_long_runs_are_averaged():
    steps = [{"step": step, "loss": float(step)} for step in range(1, 5 * MOST_POINTS + 1)]
    (loss,) = charts(steps, steps_per_epoch=1, end=5 * MOST_POINTS)
    assert len(loss.lines[0].points) == MOST_POINTS
    assert loss.lines[0].points[0] == (3.0, 3.0)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 30, [0, 5, 10, 15, 20, 25, 30]), (0.55, 2.4, [1.0, 1.5, 2.0]), (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]):
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.5, 60, [1, 10]),
        (0.09, 1100, [0.1, 1, 10, 100, 1000]),
        (0.9, 6, [1, 2, 5]),
        (3.1, 4.2, [3.2, 3.4, 3.6, 3.8, 4.0, 4.2]),
        (2.9, 6.1, [3, 4, 5, 6]),
    ],
)
def test_log_ticks_are_round(low: float, high: float, expected: list[float]):
    found = log_ticks(math.log10(low), math.log10(high))
    assert set(expected) <= {round(value, 6) for value in found}
    assert len(found) <= 9


def test_the_axis_has_commas_in_thousands():
    assert [tick_text(value) for value in (0.0001, 0.25, 999.0, 12500.0)] == ["0.0001", "0.25", "999", "12,500"]
