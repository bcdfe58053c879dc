"""Views of a report: the module tree, groups of measurements, and the root failures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from parity.measure.gates import Row
from parity.report.findings import Findings, Trajectory, around, tightness

OK, INHERITED, INSIDE, FAILED = "ok", "inherits", "inside", "FAILED"
"""Status of a module: all gates hold; fails because of other modules; contains a faulty module; is faulty itself."""

KINDS = (
    "weights",
    "structure",
    "not run",
    "configuration",
    "layer",
    "calls",
    "output",
    "loss",
    "gradient",
    "activation gradient",
    "derivative",
)
BEFORE_NUMBERS = ("weights", "structure", "not run", "configuration")
"""Kinds of failures that are independent of the layers' results."""
PRECISIONS = ("as stored", "float64", "float32")
MODES = ("-", "forced", "free", "train", "between")
"""Display order of kinds, precisions and modes; anything not listed comes last."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """A column of the module tree: `attribute` of the layer's row with this precision and mode."""

    precision: str
    label: str
    mode: str
    attribute: str

    @property
    def title(self) -> str:
        """Heading of the column, for example "f64 forced"."""
        return f"{self.precision.replace('float', 'f')} {self.label}"


PORT, REFERENCE = "port", "reference"
"""Stand for the two frameworks in a column's label."""

FIGURES = (
    Figure("float64", "forced", "forced", "error"),
    Figure("float64", "free", "free", "error"),
    Figure("float64", "noise", "free", "noise"),
    Figure("float32", PORT, "free", "error"),
    Figure("float32", REFERENCE, "free", "torch_error"),
    Figure("float32", "noise", "free", "noise"),
    Figure("float32", "growth", "free", "growth"),
)


@dataclasses.dataclass
class Node:
    """A module and its measurements; `faults` are the failures that originate in the module itself."""

    name: str
    type: str = ""
    rows: list[Row] = dataclasses.field(default_factory=list)
    faults: list[Row] = dataclasses.field(default_factory=list)
    children: list[Node] = dataclasses.field(default_factory=list)

    @property
    def label(self) -> str:
        """Last part of the path."""
        return self.name.rpartition(".")[2] or "the model"

    @property
    def status(self) -> str:
        inside = [child.status for child in self.children]
        if self.faults:
            return FAILED
        if FAILED in inside or INSIDE in inside:
            return INSIDE
        return INHERITED if INHERITED in inside or any(not row.passed for row in self.rows) else OK

    @property
    def size(self) -> int:
        """Number of modules inside, at any depth."""
        return sum(1 + child.size for child in self.children)

    def is_open(self, depth: int) -> bool:
        """Return whether to show the children: in the outer two levels, and on the path to a fault."""
        return bool(self.children) and (depth < 2 or any(c.status in (FAILED, INSIDE) for c in self.children))

    def text(self, figure: Figure) -> str:
        """Return the module's value for a column as text; empty if it was not measured."""
        value = self.figure(figure)
        return f"{value:.2g}" if value is not None and figure.attribute == "growth" else figure_text(value)

    def figure(self, figure: Figure) -> float | None:
        """Return the module's value for a column, or None if it was not measured."""
        for row in self.rows:
            if row.kind in ("layer", "output") and (row.precision, row.mode) == (figure.precision, figure.mode):
                return getattr(row, figure.attribute)
        return None


def tree(report: Findings) -> Node:
    """Return the modules as a tree, in order of computation; its root is the model."""
    nodes = {"": Node("")}

    def node(name: str) -> Node:
        if name not in nodes:
            nodes[name] = Node(name)
            node(around(name)).children.append(nodes[name])
        return nodes[name]

    for name, kind in report.layers:
        node(name).type = kind
    guilty = set(culprits(report))
    for row in report.rows:
        owner = around(row.name) if row.kind == "calls" else row.name
        while owner not in nodes:
            owner = around(owner)
        nodes[owner].rows.append(row)
        if row in guilty:
            nodes[owner].faults.append(row)
    return nodes[""]


def culprits(report: Findings) -> tuple[Row, ...]:
    """Return the root failures, which are not consequences of other failures.

    These are the kinds in BEFORE_NUMBERS and float64 failures on correct inputs; if there are none, float32 failures on
    correct inputs; if there are none either, all failures.
    """
    forced = [row for row in report.failures if row.mode == "forced"]
    double = [row for row in forced if row.precision == "float64"]
    weights = [row for row in report.failures if row.kind in BEFORE_NUMBERS]
    return tuple(weights + double or forced or report.failures)


def visible_figures(report: Findings) -> tuple[Figure, ...]:
    """Return the columns that are not empty, with the names of both frameworks."""
    names = dict(zip((PORT, REFERENCE), report.sides, strict=True))
    rows = [row for row in report.rows if row.kind in ("layer", "output")]
    return tuple(
        dataclasses.replace(f, label=names.get(f.label, f.label))
        for f in FIGURES
        if any((r.precision, r.mode) == (f.precision, f.mode) and getattr(r, f.attribute) is not None for r in rows)
    )


@dataclasses.dataclass(frozen=True)
class Group:
    """The measurements of one kind, precision and mode."""

    kind: str
    precision: str
    mode: str
    rows: Sequence[Row]

    @property
    def label(self) -> str:
        return self.kind if self.mode == "-" else f"{self.kind}, {self.mode}"

    @property
    def worst(self) -> Row:
        """The row with the largest ratio of error to gate."""
        return max(self.rows, key=tightness)

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows)


def groups(report: Findings) -> Iterator[Group]:
    """Yield all rows grouped by kind, precision and mode, in display order."""
    members: dict[tuple[str, str, str], list[Row]] = {}
    for row in report.rows:
        members.setdefault((row.kind, row.precision, row.mode), []).append(row)
    for key in sorted(members, key=_order):
        yield Group(*key, members[key])


def _order(key: tuple[str, str, str]) -> list[int]:
    orders = (KINDS, PRECISIONS, MODES)
    return [order.index(part) if part in order else len(order) for part, order in zip(key, orders, strict=True)]


def place(name: str) -> str:
    """Return the display name of a module or tensor."""
    return name or "the model"


def figure_text(value: float | None) -> str:
    """Format a number with two digits: "1.2e-16", "0", "inf"; empty for None."""
    if value is None:
        return ""
    return "0" if value == 0 else f"{value:.1e}"


def describe(row: Row, reference: str = "PyTorch") -> str:
    """Return one measurement as a line: place, kind, error against gate, the reference's error, noise and note."""
    relation = "<=" if row.error <= row.gate else ">"
    parts = [f"{place(row.name)} [{row.kind}, {row.mode}, {row.precision}]: {row.error:.2e} {relation} {row.gate:.1e}"]
    if row.torch_error is not None:
        parts.append(f"({reference} {row.torch_error:.1e})")
    if row.noise is not None:
        parts.append(f"(noise {row.noise:.1e})")
    return " ".join([*parts, row.note]).rstrip()


def training(trajectory: Trajectory) -> str:
    """Summarize a trajectory in one line."""
    if not trajectory.distance64:
        return "training: FAILED, no step was compared"
    status = OK if trajectory.passed else FAILED
    single, limit = max(trajectory.distance32_jax), min(trajectory.limits32)
    return (
        f"training, {len(trajectory.distance64)} steps: {status}; distance / travelled at most "
        f"{figure_text(max(trajectory.distance64))} in float64 (gate {figure_text(trajectory.gate64)}), float32 "
        f"{figure_text(single)} JAX, {figure_text(max(trajectory.distance32_torch))} PyTorch "
        f"(tightest gate {figure_text(limit)})"
    )
