"""The verdict: a JSON object of less than 4 KB, and the exit code."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from parity.measure.gates import Row
from parity.report.json_values import finite

VERSION = 1
"""Version of the JSON object; fields may be added without a new one."""

EQUAL, DIFFERENT, UNJUDGED = "equal", "different", "cannot be judged"

CODES = {EQUAL: 0, DIFFERENT: 1, UNJUDGED: 2}

NOT_ASKED, NOT_REACHED = "not asked", "not reached"

BYTES = 4000
"""The object is at most so long."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One of the four verdicts.

    Attributes:
        status: "equal", "different", "cannot be judged", "not asked", or "not reached" (an earlier part failed).
        measured: Precision -> the row that comes closest to its gate, or exceeds it most.
        note: One line.
    """

    status: str = NOT_REACHED
    measured: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    note: str = ""

    @classmethod
    def of(cls, rows: Sequence[Row], note: str = "") -> Part:
        """Return the verdict of rows: equal if every gate holds."""
        measured = {}
        for precision in ("float64", "float32"):
            own = [row for row in rows if row.precision == precision]
            if own:
                worst = max(own, key=lambda row: (not row.passed, _excess(row)))
                failed = sum(not row.passed for row in own)
                place = worst.name or "the output"
                measured[precision] = {"error": worst.error, "gate": worst.gate, "where": place[:120], "failed": failed}
                if worst.note:
                    measured[precision]["note"] = worst.note[:200]
        return cls(EQUAL if rows and all(row.passed for row in rows) else DIFFERENT, measured, note)

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"status": self.status, **self.measured}
        return found | ({"note": self.note[:300]} if self.note else {})


def _cut(value: Any, most: int) -> Any:
    """Return `value` with its texts shortened, but for digests."""
    if isinstance(value, Mapping):
        return {key: item if key == "sha256" else _cut(item, most) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_cut(item, most) for item in value]
    return value[: most - 3] + "..." if isinstance(value, str) and len(value) > most else value


def _lines(found: Mapping[str, Any]) -> str:
    """Return a JSON object with one line for each field."""
    lines = [f"  {json.dumps(name)}: {json.dumps(finite(value), allow_nan=False)}" for name, value in found.items()]
    return "{\n" + ",\n".join(lines) + "\n}"


def _excess(row: Row) -> float:
    if row.gate > 0:
        return row.error / row.gate
    return math.inf if row.error > 0 else 0.0


@dataclasses.dataclass(frozen=True)
class Change:
    """Where to change the port.

    Attributes:
        line: Line of the port's file; None if it is not known.
        also: The lines that called it, or that take part.
        module: PyTorch's module that is computed wrongly there; "" if it is not known.
        reference: File and line of the reference's code.
        why: The cause, as far as it is known.
    """

    line: int | None = None
    also: tuple[int, ...] = ()
    module: str = ""
    reference: str = ""
    why: str = ""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a port computes what the reference computes.

    Attributes:
        verdict: "equal", "different" or "cannot be judged".
        reason: One line.
        spec, numeric, gradients, training: The verdicts of the parts.
        files: "spec" and "port" -> {"file", "sha256"}.
        change: Where to change the port, if it is known.
        trials: Seed and shapes of the inputs of every trial.
        isolation: The measures that confined the port's code (`parity.verify.confine`).
        seconds: Time by the clock.
    """

    verdict: str
    reason: str
    spec: Part
    numeric: Part
    gradients: Part
    training: Part
    files: Mapping[str, Mapping[str, str]]
    change: Change | None = None
    trials: Sequence[Mapping[str, Any]] = ()
    isolation: Sequence[str] = ()
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        return CODES[self.verdict]

    @property
    def next(self) -> str:
        """What to try next."""
        if self.verdict == EQUAL:
            return "nothing: the port is equal to the reference"
        line = self.change.line if self.change else None
        where = f"line {line} of {self.files['port']['file']}" if line else self.files["port"]["file"]
        if self.verdict == UNJUDGED:
            if self.spec.status == UNJUDGED:
                return f"change {self.files['spec']['file']}, the specification, or ask who wrote it"
            return f"change {where} so that it can be run, as the reason says"
        if self.numeric.status == DIFFERENT:
            return f"change {where}; then verify again: later differences show once the first is gone"
        return f"the outputs are right: change how {where} is differentiated (stop_gradient, custom_vjp, where, detach)"

    def as_json(self) -> str:
        """Return the JSON object, shortened if it is too long."""
        found: dict[str, Any] = {
            "version": VERSION,
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "reason": self.reason[:400],
            "spec": self.spec.as_json(),
            "numeric": self.numeric.as_json(),
            "gradients": self.gradients.as_json(),
            "training": self.training.as_json(),
            "change": None
            if self.change is None
            else {"file": self.files["port"]["file"], **dataclasses.asdict(self.change)},
            "next": self.next,
            "files": {kind: dict(file) for kind, file in self.files.items()},
            "trials": list(self.trials[:5]),
            "isolation": list(self.isolation),
            "seconds": round(self.seconds, 1),
        }
        text = _lines(found)
        for most in (400, 200, 100, 50, 25, 12):
            if len(text.encode()) <= BYTES:
                break
            found |= {"trials": None, "isolation": None}
            text = _lines(_cut(found, most))
        return text

    def __str__(self) -> str:
        lines = [f"{self.files['port']['file']}: {self.verdict.upper()} ({self.reason})"]
        for name in ("spec", "numeric", "gradients", "training"):
            part: Part = getattr(self, name)
            figures = [
                f"{precision}: error {x['error']:.2e}, gate {x['gate']:.2e} ({x['where']})"
                for precision, x in part.measured.items()
            ]
            lines.append(f"  {name}: {part.status}" + "".join(f"; {x}" for x in (*figures, part.note) if x))
        if self.change is not None and self.change.line:
            module = f", {self.change.module} of the reference" if self.change.module else ""
            lines.append(f"  change {self.files['port']['file']}:{self.change.line}{module}")
            lines += [f"  {self.change.why}"] if self.change.why else []
        return "\n".join([*lines, f"  next: {self.next}"])
