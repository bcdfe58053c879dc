"""Gates for modules that use float32 tables, and the source lines of casts that only the port has.

A table that both models computed in float32 before the run is unchanged in the float64 run. Two correct tables may
differ in their last digits (`pow` and `exp` are not the same in both frameworks) and by the rounding of the angles of
a sine. A module that uses such a table and misses the float64 gate is therefore held to the error of such roundings;
everything after it in free mode is held to the gate between two float32 runs. Every other module's own arithmetic
keeps its gate.
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
    """Adjust the gates of rows; `apart` are the modules whose tables differ, from the forced forward rows."""

    pairing: Pairing
    gates: Gates
    apart: set[str] = dataclasses.field(default_factory=set)

    def judged(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows, with the float32 gate where a table explains why a row misses its own gate."""
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
        """Return whether a row measures a module's own float64 arithmetic and that module uses tables."""
        own = row.mode == "forced" and row.precision == "float64" and row.kind in ("layer", "output", "calls")
        return own and self._owner(row) in self.pairing.design.tabled

    def _owner(self, row: Row) -> str:
        """Return the module whose arithmetic a row measures; a module's inputs belong to the enclosing module."""
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
        """Return (N + 4) float32 roundings: the angle at the last of N positions has an error of N, a product of few.

        N is the longest axis of the module's inputs and outputs.
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
        """Return whether a free row may depend on a module in `apart`: it returned later or is inside that module."""
        order = [pair.torch[0] for pair in self.pairing.pairs]
        names = [pair.name for pair in self.pairing.pairs]
        if row.kind not in ("layer", "output") or row.name not in names:
            return True
        first = min(i for i, path in enumerate(order) if any(_around(path, module) for module in self.apart))
        return names.index(row.name) >= first


def _around(path: str, module: str) -> bool:
    return not module or path == module or path.startswith(module + ".")


def own_casts(rows: Sequence[Row], pairing: Pairing) -> list[Row]:
    """Return a row with the source lines for each failing module in which only the port casts."""
    owners = TableGates(pairing, Gates())
    wanted = [row for row in rows if row.mode == "forced" and row.precision == "float64" and not row.passed]
    failed = {owners._owner(row) for row in wanted if row.kind in ("layer", "output", "calls")}
    return [
        Row(path or "the model", "leak", "free", "float64", float("inf"), 0.0, note=f"JAX alone casts to {text}")
        for path, text in pairing.design.leaks().items()
        if path in failed
    ]
