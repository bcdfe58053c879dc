"""The gates of what works with float32 tables, and the lines of code of a port's own casts.

A table that both models made in float32 before the run stays as it is in the float64 run. Two right tables may differ
in their last digits (`pow` and `exp` are not the same in both frameworks), and by what the angles behind a sine were
rounded to. So a module that works with such a table, if it misses the gate of float64, is held to what such roundings
make; and what runs free behind it, to the gate of two float32 runs against each other. Every other module's own
arithmetic keeps its gate.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from parity.causes import enclosing
from parity.measure.gates import Gates, Row
from parity.pairing.match_calls import Pair, Pairing

FREE = ("layer", "output", "loss", "gradient", "activation gradient", "buffer")


@dataclasses.dataclass
class TableGates:
    """Judges rows anew; `apart` are the modules whose tables differ, found by the forced rows of the forward pass."""

    pairing: Pairing
    gates: Gates
    apart: set[str] = dataclasses.field(default_factory=set)

    def judged(self, rows: Sequence[Row]) -> list[Row]:
        """The rows, with float32's gate where a table is why the own one is missed."""
        if not self.pairing.design.tabled:
            return list(rows)
        self.apart |= {self._owner(row) for row in rows if self._missed(row) and self._own(row)}
        return [dataclasses.replace(row, gate=self._gate(row)) if self._excused(row) else row for row in rows]

    def notes(self) -> tuple[str, ...]:
        if not self.apart:
            return ()
        names = ", ".join(sorted(path or "the model" for path in self.apart))
        gate = f"held to a few roundings of float32, what runs free behind it to {self.gates.f32_between:.0e}"
        return (f"float32 tables that are not the same to the last digit in: {names}; {gate}",)

    def _own(self, row: Row) -> bool:
        """Whether a row is about a module's own float64 arithmetic, and that module works with tables."""
        own = row.mode == "forced" and row.precision == "float64" and row.kind in ("layer", "output", "calls")
        return own and self._owner(row) in self.pairing.design.tabled

    def _owner(self, row: Row) -> str:
        """The module whose arithmetic a row is about: what a module is given is the work of the one around it."""
        pair = self._pairs.get(row.name)
        if row.kind != "calls" or pair is None:
            return row.name.partition("#")[0]
        around = enclosing(self.pairing.pairs, pair)
        return "" if around is None else around.torch[0]

    @property
    def _pairs(self) -> dict[str, Pair]:
        return {pair.name: pair for pair in self.pairing.pairs}

    def _missed(self, row: Row) -> bool:
        return not row.passed and not row.note and row.error <= self._gate(row)

    def _gate(self, row: Row) -> float:
        own = {"output": self.gates.f32_logits, "loss": self.gates.f32_loss}.get(row.kind, self.gates.f32_between)
        return max(row.gate, min(own, self._of_tables(row)) if row.mode == "forced" else own)

    def _of_tables(self, row: Row) -> float:
        """(N + 4) roundings of float32: an angle at the last of N positions errs by N of them, a product by few.

        N is the longest axis of what the module is given or returns.
        """
        shapes = self.pairing.shapes.get((self._owner(row), 0))
        longest = max((n for shape in (*shapes.inputs, *shapes.outputs) for n in shape), default=1) if shapes else None
        return math.inf if longest is None else (longest + 4) * 2.0**-24

    def _excused(self, row: Row) -> bool:
        if not self.apart or not self._missed(row):
            return False
        if row.mode == "forced":
            return row.kind in ("layer", "output", "calls", "derivative") and self._owner(row) in self.apart
        return row.mode in ("free", "train") and row.kind in FREE and self._behind(row)

    def _behind(self, row: Row) -> bool:
        """Whether a free row may depend on a module of `apart`: it returned later, or is inside of it."""
        order = [pair.torch[0] for pair in self.pairing.pairs]
        names = [pair.name for pair in self.pairing.pairs]
        if row.kind not in ("layer", "output") or row.name not in names:
            return True
        first = min(i for i, path in enumerate(order) if any(_around(path, module) for module in self.apart))
        return names.index(row.name) >= first


def _around(path: str, module: str) -> bool:
    return not module or path == module or path.startswith(module + ".")


def own_casts(rows: Sequence[Row], pairing: Pairing) -> list[Row]:
    """A row for each failing module in which the port casts and the reference does not, with the lines that cast."""
    owners = TableGates(pairing, Gates())
    wanted = [row for row in rows if row.mode == "forced" and row.precision == "float64" and not row.passed]
    failed = {owners._owner(row) for row in wanted if row.kind in ("layer", "output", "calls")}
    return [
        Row(path or "the model", "leak", "free", "float64", float("inf"), 0.0, note=f"JAX alone casts to {text}")
        for path, text in pairing.design.leaks().items()
        if path in failed
    ]
