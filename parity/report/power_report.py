"""Results of `power` as text and as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from parity.report.json_values import finite, restored, typed

SEEN, BLIND, SAME = "seen", "blind", "same function"
NOT_FOUND = "not found"
"""Value of `PowerRow.remedy` if no remedy was found."""
STATUSES = (SEEN, BLIND, SAME)


@dataclasses.dataclass(frozen=True)
class PowerRow:
    """One mistake, inserted into each of several modules of the same type, one at a time, with the same outcome.

    Attributes:
        modules: Dotted paths of the modules in PyTorch; "" is the model itself.
        type: PyTorch class of these modules.
        switch: Kind of mistake, as in `Report.causes`.
        text: PyTorch's behaviour -> the mistaken behaviour of the port.
        status: "seen" (a gate of `check` fails), "blind" (every gate holds), or "same function" (neither random weights
            nor random inputs of these sizes distinguish it from the correct function).
        margin: Largest ratio of error to gate over all gates of `check` at this level; for several modules the
            smallest. Values above 1 are seen; infinite where the gate is 0.
        remedy: Change that would reveal the mistake ("not found" if nothing tried does); empty if the mistake is seen.
        work: Cost in forward passes of the model.
    """

    modules: tuple[str, ...]
    type: str
    switch: str
    text: str
    status: str
    margin: float
    remedy: str = ""
    work: float = 0.0

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status {self.status!r} is not one of {', '.join(STATUSES)}")

    @property
    def seen(self) -> bool:
        return self.status == SEEN

    @property
    def count(self) -> int:
        return len(self.modules)

    @property
    def where(self) -> str:
        """The first module, and the number of further modules."""
        first = self.modules[0] or "the model"
        return first if self.count == 1 else f"{first} and {self.count - 1} more"


@dataclasses.dataclass(frozen=True)
class PowerReport:
    """Results for all mistakes tried.

    Attributes:
        level: Level of the `check` whose gates were used.
        untried: Number of mistakes not tried for lack of budget.
        work, budget: Forward passes of the model: used, and allowed.
        notes: Notes on what could not be done, one line each.
    """

    rows: tuple[PowerRow, ...]
    level: str
    work: float
    budget: float
    untried: int = 0
    notes: tuple[str, ...] = ()

    def count(self, status: str) -> int:
        """Return the number of mistakes with this status."""
        return sum(row.count for row in self.rows if row.status == status)

    @property
    def seen(self) -> tuple[PowerRow, ...]:
        return tuple(row for row in self.rows if row.status == SEEN)

    @property
    def blind(self) -> tuple[PowerRow, ...]:
        return tuple(row for row in self.rows if row.status == BLIND)

    @property
    def same(self) -> tuple[PowerRow, ...]:
        return tuple(row for row in self.rows if row.status == SAME)

    @property
    def summary(self) -> str:
        """One line with the number of mistakes that would be detected, out of those tried."""
        seen, blind = self.count(SEEN), self.count(BLIND)
        if seen + blind == 0:
            return "no mistake could be tried"
        parts = [f"would have caught {seen} of {seen + blind} mistakes"]
        parts += [f"blind to {blind}"] if blind else []
        parts += [f"{self.count(SAME)} more change nothing at these sizes"] if self.same else []
        parts += [f"{self.untried} not tried (budget of {self.budget:g} forward passes)"] if self.untried else []
        return "; ".join(parts)

    def remedies(self) -> dict[str, tuple[PowerRow, ...]]:
        """Return the blind rows grouped by remedy, the remedy that reveals most mistakes first."""
        found: dict[str, list[PowerRow]] = {}
        for row in self.blind:
            found.setdefault(row.remedy, []).append(row)
        order = sorted(found, key=lambda remedy: -sum(row.count for row in found[remedy]))
        return {remedy: tuple(found[remedy]) for remedy in order}

    def lines(self, most: int = 8) -> Iterator[str]:
        """Yield the summary, then the blind rows, at most `most` for each remedy."""
        yield f"POWER {self.summary}"
        for remedy, rows in self.remedies().items():
            count = sum(row.count for row in rows)
            yield f"  {count} that nothing tried would show" if remedy == NOT_FOUND else f"  {count} show with {remedy}"
            for row in rows[:most]:
                yield f"    {row.where} [{row.type}]: {row.text} ({row.switch})"
            if len(rows) > most:
                yield f"    ... and {sum(row.count for row in rows[most:])} more"
        weakest = self.weakest
        if weakest is not None and math.isfinite(weakest.margin):
            yield f"  closest to its gate: {weakest.where}: {weakest.text}, {weakest.margin:.1e} times the gate"
        yield from (f"  NOTE {note}" for note in self.notes)

    @property
    def weakest(self) -> PowerRow | None:
        """The seen row closest to its gate."""
        return min(self.seen, key=lambda row: row.margin, default=None)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def payload(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        return {
            "summary": self.summary,
            "level": self.level,
            "work": self.work,
            "budget": self.budget,
            "untried": self.untried,
            "notes": list(self.notes),
            "rows": [{**dataclasses.asdict(row), "seen": row.seen} for row in self.rows],
        }

    def to_json(self) -> str:
        """Return the complete report as JSON; the margin at a gate of 0 is "inf"."""
        return json.dumps(finite(self.payload()), indent=1, allow_nan=False)


def power_from(payload: Mapping[str, Any]) -> PowerReport:
    """Create the report described by `payload`, the inverse of `PowerReport.payload`.

    Raises:
        ValueError, LookupError, TypeError: `payload` is not a valid report.
    """
    return PowerReport(
        rows=tuple(restored(PowerRow, _without(row, "seen")) for row in payload["rows"]),
        level=typed(payload["level"], "str"),
        work=typed(payload["work"], "float"),
        budget=typed(payload["budget"], "float"),
        untried=typed(payload["untried"], "int"),
        notes=typed(payload["notes"], "tuple[str, ...]"),
    )


def _without(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != name}


def grouped(rows: Sequence[PowerRow]) -> tuple[PowerRow, ...]:
    """Merge rows of one module each that have the same type, switch, text, status and remedy."""
    found: dict[tuple[str, ...], list[PowerRow]] = {}
    for row in rows:
        found.setdefault((row.type, row.switch, row.text, row.status, row.remedy), []).append(row)
    return tuple(_together(same) for same in found.values())


def _together(rows: Sequence[PowerRow]) -> PowerRow:
    margin, work = min(row.margin for row in rows), sum(row.work for row in rows)
    return dataclasses.replace(rows[0], modules=tuple(row.modules[0] for row in rows), margin=margin, work=work)
