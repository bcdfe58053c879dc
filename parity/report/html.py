"""Render a report as a self-contained HTML page: no scripts, no external resources, mobile layout and dark mode."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from parity.carry.convert import Entry
from parity.carry.rules import Box
from parity.measure.gates import Row
from parity.report import view
from parity.report.charts import depth_chart, gradient_charts, trajectory_charts
from parity.report.findings import Cause, Findings
from parity.report.json_values import shallow
from parity.report.markup import Markup, join, tag
from parity.report.view import FAILED, INHERITED, INSIDE, OK, Node, figure_text, place

STYLE = Path(__file__).with_name("report.css")
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""Content-Security-Policy, by which the browser blocks scripts and external resources."""
MOST_FAILURES = 100
LEGEND = (
    f"{FAILED}: errs on correct inputs. {INSIDE}: such a module is inside. {INHERITED}: fails by the fault of others."
)


def page(report: Findings) -> str:
    """Return the whole document."""
    word = "EQUAL" if report.passed else "DIFFERENT"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{report.title}: {word}"),
        tag("style", Markup(STYLE.read_text(encoding="utf-8"))),
    )
    sections = (
        _section("Failures", _failures(report)),
        _section("Error against depth", depth_chart(report)),
        _section("Summary", _summary(report)),
        _section("Modules", _modules(report)),
        _section("Gradients", join(gradient_charts(report))),
        _section("Training", _training(report)),
        _section("Reduced precision", _formats(report)),
        _section("Tensors", _ledger(report)),
        _section("Notes", _list(report.notes)),
        _section("Without a partner", _unpaired(report)),
        _section("Power of this proof", _power(report)),
        _section("Settings and environment", _environment(report)),
    )
    body = tag("body", _verdict(report, word), tag("main", *(s for s in sections if s is not None)))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _section(title: str, content: Markup | None) -> Markup | None:
    """Return a titled section of the page, or None if it is empty."""
    return tag("section", tag("h2", title), content) if content else None


def _verdict(report: Findings, word: str) -> Markup:
    kind = "good" if report.passed else "bad"
    sides = " against ".join(
        str(shallow(report.settings[key])) for key in ("torch_model", "jax_model") if report.settings.get(key)
    )
    lines = [tag("p", report.tally, class_="lead")]
    if report.first_divergence:
        lines.append(tag("p", "First divergence: ", tag("code", report.first_divergence), class_="divergence"))
    lines += [_cause(cause) for cause in report.causes]
    heading = tag("h1", tag("span", report.title, class_="model"), " ", tag("strong", word, class_=f"badge {kind}"))
    about = tag("p", f"PyTorch and JAX, compared layer by layer: {sides}", class_="about") if sides else Markup()
    return tag("header", heading, about, *lines, class_=kind)


def _cause(cause: Cause) -> Markup:
    change = f" ({cause.switch}: {figure_text(cause.error_before)} becomes {figure_text(cause.error_after)})"
    return tag("p", "Cause in ", tag("code", place(cause.module)), f": {cause.description}", change, class_="cause")


# Tables


Cell = str | float | None
"""Text, a count (int), an error (float), or an empty cell."""


def _table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], failed: Sequence[bool] = ()) -> Markup:
    """Return a table in a scrollable box; `failed` selects the rows to mark."""
    numeric = [any(isinstance(row[i], int | float) for row in rows) for i in range(len(columns))]
    styles = ["number" if number else None for number in numeric]
    head = tag("tr", *(tag("th", name, scope="col", class_=style) for name, style in zip(columns, styles, strict=True)))
    body = []
    for row, bad in zip(rows, failed or [False] * len(rows), strict=True):
        cells = [tag("td", _cell(cell), class_=style) for cell, style in zip(row, styles, strict=True)]
        body.append(tag("tr", *cells, class_="bad" if bad else None))
    table = tag("table", tag("caption", tag("span", caption)), tag("thead", head), tag("tbody", *body))
    return tag("div", table, class_="scroll", role="region", aria_label=caption, tabindex=0)


def _cell(cell: Cell) -> str:
    return figure_text(cell) if isinstance(cell, float) else "" if cell is None else str(cell)


def _status(passed: bool) -> str:
    return OK if passed else FAILED


def _summary(report: Findings) -> Markup | None:
    groups = list(view.groups(report))
    rows = [
        (
            _status(group.passed),
            group.label,
            group.precision,
            len(group.rows),
            group.worst.error,
            group.worst.gate,
            place(group.worst.name),
        )
        for group in groups
    ]
    columns = ("verdict", "check", "precision", "count", "worst", "gate", "where")
    caption = "The measurement closest to its gate, of every kind; relative Frobenius error"
    return _table(caption, columns, rows, [not group.passed for group in groups]) if rows else None


def _failures(report: Findings) -> Markup | None:
    """Return the root failures, and all other failures in a collapsed section."""
    if not report.failures:
        return None
    guilty, reference = view.culprits(report), report.sides[1]
    rest = [row for row in report.failures if row not in set(guilty)]
    parts = [_failure_table("What fails on correct inputs" if rest else "What fails", guilty, reference)]
    if rest:
        parts.append(
            _folded(f"{len(rest)} more, which may follow from these", _failure_table("What fails too", rest, reference))
        )
    return join(parts)


def _failure_table(caption: str, failed: Sequence[Row], reference: str) -> Markup:
    rows = [
        (
            place(row.name),
            f"{row.kind}, {row.mode}",
            row.precision,
            row.error,
            row.gate,
            row.torch_error,
            row.noise,
            row.note,
        )
        for row in failed[:MOST_FAILURES]
    ]
    if len(failed) > MOST_FAILURES:
        caption += f"; the first {MOST_FAILURES} of {len(failed)}, the JSON report holds all"
    columns = ("where", "check", "precision", "error", "gate", reference, "noise", "note")
    return _table(caption, columns, rows)


def _training(report: Findings) -> Markup | None:
    if report.trajectory is None:
        return None
    return join([tag("p", view.training(report.trajectory)), *trajectory_charts(report)])


def _formats(report: Findings) -> Markup | None:
    rows = [(_status(row.passed), row.name, row.format, row.error, row.torch_error, row.cap) for row in report.formats]
    caption = "Relative Frobenius error to the float32 run at highest precision"
    columns = ("verdict", "measured", "format", *report.sides, "cap")
    return _table(caption, columns, rows, [not row.passed for row in report.formats]) if rows else None


def _power(report: Findings) -> Markup | None:
    """Return the mistakes that this check misses, and the number of those that it detects."""
    if report.power is None:
        return None
    rows = [
        (row.where, row.type, row.count, row.switch, row.text, remedy)
        for remedy, found in report.power.remedies().items()
        for row in found
    ]
    columns = ("where", "type", "modules", "mistake", "what it would be", "what would show it")
    parts = [tag("p", f"This proof {report.power.summary}.")]
    parts += (
        [_table("Mistakes that these inputs and weights do not show", columns, rows[:MOST_FAILURES])] if rows else []
    )
    return join([*parts, *(tag("p", note) for note in report.power.notes)])


def _ledger(report: Findings) -> Markup | None:
    rows = [
        (
            entry.torch,
            _shape(entry.torch_shape),
            entry.jax,
            _shape(entry.jax_shape),
            _carried(entry),
            entry.layer,
            entry.dtype,
        )
        for entry in report.ledger
    ]
    rows += [(name, "", "no partner", "", "", "", "") for name in report.ledger.torch_only]
    rows += [("no partner", "", name, "", "", "", "") for name in report.ledger.jax_only]
    columns = ("PyTorch", "shape", "JAX", "shape", "carried", "layer", "dtype")
    return _folded(f"{len(rows)} tensors", _table("Every tensor of both models", columns, rows)) if rows else None


def _carried(entry: Entry) -> str:
    part, parts = entry.part
    ways = [
        f"part {part + 1} of {parts}" if parts > 1 else "",
        f"axes {', '.join(map(str, entry.axes))}" if entry.axes is not None else "",
        f"split {_shape(entry.split)}" if entry.split else "",
        f"from {_box(entry.out_of)}" if entry.out_of else "",
        f"layer {entry.index} of the stack" if entry.index is not None else "",
        f"into {_box(entry.into)}" if entry.into else "",
        "added, zero" if entry.added else "",
    ]
    return "; ".join(filter(None, ways)) or "as it is"


def _box(box: Box) -> str:
    return ", ".join(f"{start}:{stop} of axis {axis}" for axis, start, stop in box)


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) if shape else "scalar"


def _list(lines: Sequence[str]) -> Markup | None:
    return tag("ul", *(tag("li", line) for line in lines)) if lines else None


def _unpaired(report: Findings) -> Markup | None:
    entries = [tag("li", tag("code", name)) for name in report.unpaired]
    title = f"{len(entries)} calls, judged with the module around them"
    return _folded(title, tag("ul", *entries)) if entries else None


def _environment(report: Findings) -> Markup:
    rows = [*_flat(shallow(report.settings)), *_flat(shallow(report.environment))]
    return _folded("What the figures depend on", _table("Settings and environment", ("name", "value"), rows))


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{key}", text) for key, text in _flat(value))
        else:
            yield name, value if isinstance(value, str) else json.dumps(value, default=str)


def _folded(title: str, content: Markup) -> Markup:
    return tag("details", tag("summary", title), content)


# The module tree


def _modules(report: Findings) -> Markup | None:
    if not report.layers:
        return None
    figures = view.visible_figures(report)
    labels = [tag("span", figure.title, class_="figure") for figure in figures]
    legend = tag("span", "verdict", class_="status")
    head = tag("div", tag("span", "module", class_="name"), *labels, legend, class_="row head", aria_hidden="true")
    tree = tag("div", head, _module(view.tree(report), figures, 0), class_="tree")
    return tree if report.passed else join([tag("p", LEGEND, class_="about"), tree])


def _module(node: Node, figures: Sequence[view.Figure], depth: int) -> Markup:
    """Return a module and its children, expanded where the tree on the terminal is."""
    line = _line(node, figures)
    if not node.children:
        return tag("div", *line, class_="row leaf")
    inside = [_module(child, figures, depth + 1) for child in node.children]
    summary = tag("summary", tag("div", *line, class_="row"))
    return tag("details", summary, tag("div", *inside, class_="inside"), open=node.is_open(depth))


def _line(node: Node, figures: Sequence[view.Figure]) -> Iterator[Markup]:
    count = f" (+{node.size})" if node.children else ""
    yield tag("span", tag("code", node.label), f" {node.type}", tag("small", count), class_="name", title=node.name)
    for figure in figures:
        text = node.text(figure)
        # The label is for screen readers; on a narrow page it is also visible.
        label = [tag("span", f"{figure.title} ", class_="label")] if text else []
        yield tag("span", *label, text, class_=f"figure {figure.attribute}{'' if text else ' none'}")
    kind = {OK: "good", FAILED: "bad", INSIDE: "bad"}.get(node.status, "warn")
    yield tag("span", node.status, class_=f"status {kind}")
