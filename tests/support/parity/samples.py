"""Reports made by hand: what a check of a small model finds, without running one."""

from __future__ import annotations

import dataclasses
from typing import Any

from parity import Entry, Ledger, Report, Row
from parity.report.findings import Cause, FormatRow, Trajectory

LAYERS = (
    ("stem", "Conv2d"),
    ("blocks.0.norm", "LayerNorm"),
    ("blocks.0.mlp.fc", "Linear"),
    ("blocks.0.mlp", "Mlp"),
    ("blocks.0", "Block"),
    ("blocks.1.norm", "LayerNorm"),
    ("blocks.1.mlp.fc", "Linear"),
    ("blocks.1.mlp", "Mlp"),
    ("blocks.1", "Block"),
    ("head", "Linear"),
    ("", "Net"),
)
ENVIRONMENT = {"python": "3.11", "versions": {"torch": "2.0", "jax": "0.5"}, "jax_devices": ["cpu"]}


def layer_rows(name: str) -> list[Row]:
    kind = "layer" if name else "output"
    return [
        Row(name, kind, "free", "float64", 3e-16, 1e-13, noise=2e-16),
        Row(name, kind, "forced", "float64", 0.0, 1e-13),
        Row(name, kind, "free", "float32", 2e-7, 8e-7, 1.9e-7, noise=1e-7, growth=1.2),
        Row(name, kind, "between", "float32", 2e-7, 1e-5),
        Row(name, kind, "forced", "float32", 1e-7, 6e-7, 1.1e-7),
    ]


def gradient_rows(name: str) -> list[Row]:
    return [
        Row(name, "gradient", "free", "float64", 1e-15, 1e-12),
        Row(name, "gradient", "free", "float32", 5e-7, 2e-6, 4e-7),
    ]


def passing(**changes: Any) -> Report:
    """Everything holds."""
    rows = [Row("12 tensors", "weights", "-", "as stored", 0.0, 0.0)]
    rows += [row for name, _ in LAYERS for row in layer_rows(name)]
    rows += [row for name in ("stem.weight", "blocks.0.norm.weight", "head.bias") for row in gradient_rows(name)]
    ledger = Ledger(
        (
            Entry("stem.weight", "stem.kernel", "Conv", (2, 3, 1, 0), (4, 3, 2, 2), (2, 2, 3, 4), "float32"),
            Entry("qkv.weight", "layers.query.kernel", "Linear", (1, 0), (9, 3), (2, 3, 3), "float32", (0, 3), 1),
            Entry("head.bias", "head.bias", "Linear", None, (4,), (4,), "float32"),
        ),
        ("stem.num_batches_tracked",),
        ("cache",),
    )
    settings = {"torch_model": "Net", "jax_model": "Net", "level": "gradients", "seconds": 1.5}
    report = Report(tuple(rows), ledger, LAYERS, ("act of PyTorch",), settings, ENVIRONMENT)
    return dataclasses.replace(report, **changes)


def with_rows(report: Report, errors: dict[tuple[str, str, str, str], float]) -> Report:
    """The report with the errors of some rows, by (name, kind, mode, precision), replaced."""
    rows = [
        dataclasses.replace(row, error=errors.get((row.name, row.kind, row.mode, row.precision), row.error))
        for row in report.rows
    ]
    assert sum(a != b for a, b in zip(rows, report.rows, strict=True)) == len(errors)
    return dataclasses.replace(report, rows=tuple(rows))


def failing() -> Report:
    """blocks.1.norm is wrong, and everything behind it with it."""
    behind = [name for name, _ in LAYERS[5:]]
    errors = {(n, "layer" if n else "output", "free", p): 2e-4 for n in behind for p in ("float64", "float32")}
    errors |= {("blocks.1.norm", "layer", "forced", "float64"): 1e-3}
    cause = Cause("blocks.1.norm", "eps", "eps is 1e-05 in PyTorch, 1e-03 in JAX", 1e-3, 2e-16)
    return dataclasses.replace(with_rows(passing(), errors), causes=(cause,))


def trained(steps: int = 20) -> Report:
    """Everything holds, reduced formats and training too."""
    n = range(1, steps + 1)
    trajectory = Trajectory(
        loss_torch=tuple(2.3 / i for i in n),
        loss_jax=tuple(2.3 / i for i in n),
        distance64=tuple(1e-15 * i for i in n),
        distance32_jax=tuple(2e-6 * i for i in n),
        distance32_torch=tuple(1.8e-6 * i for i in n),
    )
    formats = (FormatRow("output", "bfloat16", 4e-3, 1.4e-2, 4.1e-3), FormatRow("output", "tf32", 4e-4, 2e-3))
    return passing(trajectory=trajectory, formats=formats)
