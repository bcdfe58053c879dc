"""What a check found: for people a table, for machines JSON."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from parity.compare import Row
from parity.convert import Ledger
from parity.environment import fingerprint

SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Report:
    """Every measurement of one check. `layers` are (name, PyTorch type) in the order in which their calls return."""

    rows: tuple[Row, ...]
    ledger: Ledger
    layers: tuple[tuple[str, str], ...]
    unpaired: tuple[str, ...] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, Any] = dataclasses.field(default_factory=fingerprint)

    @property
    def passed(self) -> bool:
        """Whether every gate holds; a report without measurements does not pass."""
        return bool(self.layers) and bool(self.rows) and all(row.passed for row in self.rows)

    @property
    def failures(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if not row.passed)

    @property
    def first_divergence(self) -> str | None:
        """The first module, in the order of computation, that errs on correct inputs; None if there is none.

        Among forced rows alone: there every module got the reference's inputs, and its children's correct outputs.
        What a module passes on to its children is its own work, so a wrong "calls" row names the module around.
        """
        order = {name: i for i, (name, _) in enumerate(self.layers)}
        failed = [row for row in self.rows if row.mode == "forced" and not row.passed and row.name in order]
        if not failed:
            return None
        # float32 rows only speak where float64 is silent.
        precision = "float64" if any(row.precision == "float64" for row in failed) else "float32"
        first = min((row for row in failed if row.precision == precision), key=lambda row: order[row.name])
        return _around(first.name) if first.kind == "calls" else first.name or "the model"

    def worst(self, kind: str, precision: str, mode: str | None = None) -> Row | None:
        """The row closest to its gate, or furthest beyond."""
        rows = [r for r in self.rows if (r.kind, r.precision) == (kind, precision) and mode in (None, r.mode)]
        return max(rows, key=_tightness, default=None)

    def to_json(self) -> str:
        """The whole report, versioned; infinite errors are the string "inf"."""
        payload = {
            "schema": SCHEMA_VERSION,
            "passed": self.passed,
            "first_divergence": self.first_divergence,
            "settings": dict(self.settings),
            "environment": dict(self.environment),
            "unpaired": list(self.unpaired),
            "ledger": {
                "entries": [dataclasses.asdict(entry) for entry in self.ledger],
                "torch_only": list(self.ledger.torch_only),
                "jax_only": list(self.ledger.jax_only),
            },
            "layers": [{"name": name, "type": kind} for name, kind in self.layers],
            "rows": [{**dataclasses.asdict(row), "passed": row.passed} for row in self.rows],
        }
        return json.dumps(_finite(payload), indent=1, allow_nan=False)

    def __str__(self) -> str:
        return self.render(width=120)

    def render(self, width: int | None = None, color: bool = False) -> str:
        """The tables as text."""
        stream = io.StringIO()
        console = Console(file=stream, width=width, force_terminal=color, no_color=not color, highlight=False)
        console.print(self._layer_table())
        console.print(self._summary_table())
        for row in self.failures[:20]:
            name = row.name or "the model"
            console.print(
                f"FAILED {name} [{row.kind}, {row.mode}, {row.precision}]: {row.error:.2e} > {row.gate:.1e} {row.note}",
                markup=False,
            )
        if len(self.failures) > 20:
            console.print(f"... and {len(self.failures) - 20} more")
        if self.unpaired:
            console.print(f"{len(self.unpaired)} calls without a partner, judged with the module around them")
        console.print(self.verdict)
        return stream.getvalue()

    @property
    def verdict(self) -> str:
        if self.passed:
            return f"EQUAL: {len(self.rows)} measurements, {len(self.layers)} layer calls, every gate holds"
        where = f"; first divergence: {self.first_divergence}" if self.first_divergence else ""
        return f"DIFFERENT: {len(self.failures)} of {len(self.rows)} measurements fail{where}"

    def _layer_table(self) -> Table:
        """One line per layer that errs, and per layer of the outer two levels."""
        table = Table("layer", "type", title="Every layer, relF", title_justify="left")
        columns = [
            ("f64 forced", "float64", "forced", "error"),
            ("f64 free", "float64", "free", "error"),
            ("f32 JAX", "float32", "free", "error"),
            ("f32 PyTorch", "float32", "free", "torch_error"),
        ]
        for title, *_ in columns:
            table.add_column(title, justify="right")
        table.add_column("")
        by_name: dict[str, list[Row]] = {}
        for row in self.rows:
            if row.kind in ("layer", "output", "calls"):
                by_name.setdefault(row.name, []).append(row)
        for name, kind in self.layers:
            rows = by_name.get(name, [])
            passed = all(row.passed for row in rows)
            if passed and name.count(".") > 1:
                continue
            own = {(row.precision, row.mode): row for row in rows if row.kind != "calls"}
            cells = [_figure(getattr(own.get((p, m)), what, None)) for _, p, m, what in columns]
            table.add_row(name or "the model", kind, *cells, "ok" if passed else "FAILED")
        return table

    def _summary_table(self) -> Table:
        table = Table("check", "precision", "compared", "worst", "gate", "where", title="Summary", title_justify="left")
        groups = sorted({(row.kind, row.precision, row.mode) for row in self.rows}, key=_group_order)
        for kind, precision, mode in groups:
            rows = [row for row in self.rows if (row.kind, row.precision, row.mode) == (kind, precision, mode)]
            row = max(rows, key=_tightness)
            label = kind if mode == "-" else f"{kind}, {mode}"
            where = row.name or "the model"
            table.add_row(label, precision, str(len(rows)), _figure(row.error), _figure(row.gate), where)
        return table


def _around(name: str) -> str:
    """The module around `name`: its path without the call number and the last part."""
    return name.split("#")[0].rpartition(".")[0] or "the model"


def _tightness(row: Row) -> float:
    """How much of its gate a row uses up; a failed row more than any that passed."""
    if row.error == 0 and not row.note:
        return 0.0
    return math.inf if row.gate == 0 or row.note else row.error / row.gate


def _group_order(group: tuple[str, str, str]) -> tuple[int, str, str]:
    kinds: Sequence[str] = ("weights", "layer", "calls", "output", "loss", "gradient")
    kind, precision, mode = group
    return (kinds.index(kind) if kind in kinds else len(kinds), precision, mode)


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    return "0" if value == 0 else f"{value:.1e}"


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN: those become strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
