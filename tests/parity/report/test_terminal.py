"""The report as text."""

from __future__ import annotations

import dataclasses

import pytest

from parity import Report
from tests.support.parity.samples import LAYERS, failing, passing, trained, with_rows


def lines(report: Report, width: int) -> list[str]:
    return report.render(width).splitlines()


def line_of(report: Report, module: str, width: int = 120) -> str:
    return next(line for line in lines(report, width) if line.strip(" │├└").startswith(f"{module} "))


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("make", [passing, failing, trained])
def test_tables_fit_and_nothing_is_cut(make, width: int) -> None:
    rendered = lines(make(), width)
    assert "…" not in "\n".join(rendered)
    tables = rendered[: max(i for i, line in enumerate(rendered) if line == "")]
    assert max(len(line) for line in tables) <= width


def test_a_long_name_is_whole_at_80_columns() -> None:
    long = "tokens_to_token.attention1.transformer.inner_projection.kernel_of_the_thing.weight"
    report = passing()
    rows = [dataclasses.replace(row, name=long, error=1.0) if row.kind == "gradient" else row for row in report.rows]
    rendered = lines(dataclasses.replace(report, rows=tuple(rows)), 80)
    summary = rendered[rendered.index("Summary") + 1 : rendered.index("", rendered.index("Summary"))]
    where = summary[0].index("where")
    assert long in "".join(line[where:] for line in summary)


def test_a_good_tree_is_collapsed_below_the_second_level() -> None:
    text = passing().render(120)
    assert "1 (+3)" in text
    assert "norm" not in text[: text.index("Summary")]


def test_a_tree_is_opened_on_the_way_to_the_fault_and_there_alone() -> None:
    report = failing()
    assert line_of(report, "norm").split()[-1] == "FAILED"
    assert line_of(report, "head").split()[-1] == "inherits"
    assert "0 (+3)" in report.render(120)
    assert "mlp (+1)" in report.render(120)


def test_a_module_shows_all_its_figures() -> None:
    figures = "├ stem Conv2d 0 3.0e-16 2.0e-16 2.0e-07 1.9e-07 1.0e-07 1.2 ok"
    assert " ".join(line_of(passing(), "stem").split()) == figures


def test_the_end_tells_fault_cause_and_verdict() -> None:
    *_, failure, rest, cause, _, verdict = lines(failing(), 80)
    assert failure == "FAILED blocks.1.norm [layer, forced, float64]: 1.00e-03 > 1.0e-13"
    assert rest == "... and 12 more"
    assert cause.startswith("CAUSE blocks.1.norm: eps is 1e-05 in PyTorch, 1e-03 in JAX")
    assert verdict == "DIFFERENT: 13 of 62 measurements fail; first divergence: blocks.1.norm"
    assert len(failing().failures) == 13


def test_brief_is_verdict_cause_and_culprits() -> None:
    assert len(failing().brief().splitlines()) == 4
    many = with_rows(passing(), {(name, "layer", "free", "float64"): 1.0 for name, _ in LAYERS if name})
    assert many.brief().splitlines()[-1] == "... and 2 more"


def test_formats_and_training_are_shown() -> None:
    text = trained().render(80)
    assert "bfloat16" in text
    assert "training, 20 steps: ok" in text
    report = trained()
    assert report.trajectory is not None
    late = dataclasses.replace(report.trajectory, distance64=(*report.trajectory.distance64[:-1], 1e-9))
    assert "training, 20 steps: FAILED" in dataclasses.replace(report, trajectory=late).render(80)


def test_colour_only_where_asked() -> None:
    assert "\x1b[" in failing().render(80, color=True)
    assert "\x1b[" not in failing().render(80)


@pytest.mark.parametrize("color", [False, True])
def test_names_cannot_control_the_terminal(color: bool):
    text = dataclasses.replace(failing(), notes=("\x1b]0;title\x07\x1b[2J \u202e",)).render(200, color=color)
    assert "NOTE \\x1b]0;title" in text
    assert not [order for order in ("\x07", "\x1b]", "\x1b[2J", "\u202e") if order in text]
