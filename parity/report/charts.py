"""Charts of a report: error against depth, gradients, training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from parity.measure.gates import Row
from parity.report.findings import Findings, Trajectory
from parity.report.markup import Markup, tag
from parity.report.svg import LinearAxis, LogAxis, Series, plot
from parity.report.view import place

ZERO = "Zero is drawn at the bottom edge, infinity at the top; failed figures are ringed."


STYLES = {"JAX": "jax32", "PyTorch": "torch32"}
"""Style of the float32 series of each framework."""


def depth_chart(report: Findings) -> Markup | None:
    """Plot the error of every layer in order of computation; None without layers."""
    names = [name for name, _ in report.layers]
    rows = [row for row in report.rows if row.kind in ("layer", "output")]
    double, forced = _by_name(rows, "float64", "free"), _by_name(rows, "float64", "forced")
    single = _by_name(rows, "float32", "free")
    port, base = report.sides
    series = [
        _errors("float64, free", "free64", names, double, "dot"),
        _errors("float64, on correct inputs", "forced64", names, forced, "ring", line=False),
        _noise("float64 noise floor", "noise64", names, double),
        _gate("float64 gate", "gate64", names, double),
        _errors(f"float32 {port}", STYLES[port], names, single, "square"),
        _own(f"float32 {base}", STYLES[base], names, single, "cross"),
        _noise("float32 noise floor", "noise32", names, single),
        _gate("float32 gate", "gate32", names, single),
    ]
    first = next((i for i, name in enumerate(names) if place(name) == report.first_divergence), None)
    caption = (
        "Relative Frobenius error of every layer, from the input (left) to the output (right). float64: JAX to "
        f"PyTorch; float32: each framework to PyTorch's float64. {ZERO}"
    )
    return _figure(caption, series, [place(name) for name in names], [_stem(name) for name in names], first)


def gradient_charts(report: Findings) -> Iterator[Markup]:
    """Plot the measured gradient errors of parameters and inputs, of activations, and in training mode."""
    port, base = report.sides
    for kind, mode, what in (
        ("gradient", "free", "parameter and input"),
        ("activation gradient", "free", "activation"),
        ("gradient", "train", "parameter and input, in training mode"),
    ):
        rows = [row for row in report.rows if (row.kind, row.mode) == (kind, mode)]
        names = list(dict.fromkeys(row.name for row in rows))
        double, single = _by_name(rows, "float64", mode), _by_name(rows, "float32", mode)
        series = [
            _errors("float64", "free64", names, double, "dot", line=False),
            _gate("float64 gate", "gate64", names, double),
            _errors(f"float32 {port}", STYLES[port], names, single, "square", line=False),
            _own(f"float32 {base}", STYLES[base], names, single, "cross", line=False),
            _gate("float32 gate", "gate32", names, single),
        ]
        caption = f"Relative Frobenius error of the gradient of every {what}. {ZERO}"
        chart = _figure(caption, series, [place(name) for name in names], [_stem(name) for name in names])
        if chart is not None:
            yield chart


def trajectory_charts(report: Findings) -> Iterator[Markup]:
    """Plot the distance between the runs and the loss at each step."""
    trajectory = report.trajectory
    if trajectory is None:
        return
    steps = [f"step {i + 1}" for i in range(len(trajectory.distance64))]
    ticks = [step.removeprefix("step ") for step in steps]
    caption = (
        "Distance between weights over the distance travelled. float64: JAX to PyTorch; float32: each framework to "
        f"PyTorch's float64. {ZERO}"
    )
    losses = [
        Series("PyTorch", "torch32", trajectory.loss_torch),
        Series("JAX", "jax32", trajectory.loss_jax, "square", line=False),
    ]
    charts = (
        _figure(caption, _distances(trajectory), steps, ticks),
        _figure("Loss in float64.", losses, steps, ticks, axis=LinearAxis),
    )
    yield from (chart for chart in charts if chart is not None)


def _distances(trajectory: Trajectory) -> list[Series]:
    failed64 = [i for i, d in enumerate(trajectory.distance64) if not d <= trajectory.gate64]
    pairs = zip(trajectory.distance32_jax, trajectory.limits32, strict=True)
    failed32 = [i for i, (d, limit) in enumerate(pairs) if not d <= limit]
    return [
        Series("float64", "free64", trajectory.distance64, "dot", failed=failed64),
        Series("float64 gate", "gate64", [trajectory.gate64] * len(trajectory.distance64)),
        Series("float32 JAX", "jax32", trajectory.distance32_jax, "square", failed=failed32),
        Series("float32 PyTorch", "torch32", trajectory.distance32_torch, "cross"),
        Series("float32 gate", "gate32", trajectory.limits32),
    ]


def _figure(
    caption: str,
    series: Sequence[Series],
    names: Sequence[str],
    groups: Sequence[str],
    highlight: int | None = None,
    axis: type[LogAxis] | type[LinearAxis] = LogAxis,
) -> Markup | None:
    """Return the plot with its caption, or None if nothing was measured."""
    drawn = [s for s in series if any(value is not None for value in s.values)]
    if not drawn:
        return None
    content = plot(drawn, names, axis=axis, description=caption, groups=groups, highlight=highlight)
    return tag("figure", tag("figcaption", caption), content)


def _stem(name: str) -> str:
    """Return the group of a layer or tensor: the outermost module, or the block in a numbered list."""
    first, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    return f"{first}.{number}" if number.isdigit() else first


def _by_name(rows: Sequence[Row], precision: str, mode: str) -> dict[str, Row]:
    return {row.name: row for row in rows if (row.precision, row.mode) == (precision, mode)}


def _errors(label: str, style: str, names: Sequence[str], rows: dict[str, Row], mark: str, line: bool = True) -> Series:
    values = [rows[name].error if name in rows else None for name in names]
    failed = [i for i, name in enumerate(names) if name in rows and not rows[name].passed]
    return Series(label, style, values, mark, line, failed)


def _own(label: str, style: str, names: Sequence[str], rows: dict[str, Row], mark: str, line: bool = True) -> Series:
    return Series(label, style, [rows[name].torch_error if name in rows else None for name in names], mark, line)


def _noise(label: str, style: str, names: Sequence[str], rows: dict[str, Row]) -> Series:
    return Series(label, style, [rows[name].noise if name in rows else None for name in names])


def _gate(label: str, style: str, names: Sequence[str], rows: dict[str, Row]) -> Series:
    return Series(label, style, [rows[name].gate if name in rows else None for name in names])
