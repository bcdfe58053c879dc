"""The result of `parity.train`: what was compared in every step, where the two first differ, and why."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parity.report.findings import Cause
from parity.report.json_values import finite, shallow
from parity.report.text_file import saved

STAGES = ("loss", "gradient", "optimizer state", "update", "average", "buffer")
"""What is compared in every step, in the order of computation."""


@dataclasses.dataclass(frozen=True)
class StepRow:
    """The largest error of one kind in one step.

    Attributes:
        step: Step of the optimizer, from 1.
        stage: "loss"; "gradient" of the loss; "optimizer state" (moments); "update" (the change of a parameter, from
            PyTorch's parameters and gradients); "average" (moving average); "buffer" (running statistics).
        name: PyTorch's name of the tensor with the largest error.
        error: relF of JAX's to PyTorch's.
        gate: The largest error that passes.
    """

    step: int
    stage: str
    name: str
    error: float
    gate: float

    @property
    def passed(self) -> bool:
        return self.error <= self.gate

    def __str__(self) -> str:
        of = f" of {self.name}" if self.name else ""
        return f"step {self.step}: {self.stage}{of}"


@dataclasses.dataclass(frozen=True)
class TrainReport:
    """Result of `parity.train`.

    Attributes:
        rows: For each step and stage, the tensor with the largest error.
        loss_torch, loss_jax: Loss before each step, each framework by itself.
        distance: After each step, the distance between the parameters of the two, each training by itself, relative to
            the distance travelled.
        distance_gate: Largest distance that passes.
        cause: The change of PyTorch's arithmetic with which it takes JAX's steps, if one was found; `error_before` and
            `error_after` are the largest distance without and with it.
        notes: What was not compared, or assumed.
        settings, environment: Arguments, and versions of the libraries.
    """

    rows: tuple[StepRow, ...]
    loss_torch: tuple[float, ...]
    loss_jax: tuple[float, ...]
    distance: tuple[float, ...]
    distance_gate: float
    cause: Cause | None
    notes: tuple[str, ...]
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]

    @property
    def passed(self) -> bool:
        """Whether every gate holds; without a step nothing passes."""
        return bool(self.distance) and not self.failures and all(d <= self.distance_gate for d in self.distance)

    @property
    def failures(self) -> tuple[StepRow, ...]:
        """The failing rows, in order of computation."""
        failing = [row for row in self.rows if not row.passed]
        return tuple(sorted(failing, key=lambda row: (row.step, STAGES.index(row.stage))))

    @property
    def first_divergence(self) -> str | None:
        """Step, stage and tensor of the first difference; None if there is none."""
        if self.failures:
            return str(self.failures[0])
        far = next((i for i, d in enumerate(self.distance, 1) if not d <= self.distance_gate), None)
        return None if far is None else f"step {far}: parameters"

    def __str__(self) -> str:
        n = len(self.distance)
        lines = [f"training in float64, {n} step{'s' if n > 1 else ''}: {'EQUAL' if self.passed else 'DIFFERENT'}"]
        if not self.passed:
            first = self.failures[0] if self.failures else None
            sized = f", error {first.error:.1e} (gate {first.gate:.0e})" if first else ""
            lines.append(f"first difference: {self.first_divergence}{sized}")
            if self.cause is not None:
                lines.append(f"cause: {self.cause.switch}: {self.cause.description}")
                lines.append(
                    f"  with this change PyTorch takes JAX's steps: distance {self.cause.error_after:.1e}, "
                    f"without it {self.cause.error_before:.1e}"
                )
            else:
                lines.append("cause: none of the known ones takes JAX's steps")
        lines.append("largest error in any step:")
        for stage in STAGES:
            rows = [row for row in self.rows if row.stage == stage]
            if rows:
                worst = max(rows, key=lambda row: row.error)
                named = f"  {worst.name}, step {worst.step}" if worst.error else ""
                lines.append(f"  {stage:<16}{worst.error:9.1e}  (gate {worst.gate:.0e}){named}")
        shown = sorted({0, min(1, n - 1), n // 2, n - 1})
        lines.append("each by itself:   loss in PyTorch   loss in JAX   distance / distance travelled")
        lines += [
            f"  step {i + 1:<10}{self.loss_torch[i]:16.9f}{self.loss_jax[i]:14.9f}{self.distance[i]:12.1e}"
            for i in shown
        ]
        lines.append(f"  gate of the distance: {self.distance_gate:.0e}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def to_json(self, path: str | Path | None = None) -> str:
        """Return the report as JSON, and write it to `path` if given. Non-finite numbers are "inf", "-inf" or "nan".

        Raises:
            FileNotFoundError, ValueError: `path` cannot be written; the message gives the reason.
        """
        payload = {
            "schema": 1,
            "passed": self.passed,
            "first_divergence": self.first_divergence,
            "cause": None if self.cause is None else dataclasses.asdict(self.cause),
            "rows": [{**dataclasses.asdict(row), "passed": row.passed} for row in self.rows],
            "loss_torch": list(self.loss_torch),
            "loss_jax": list(self.loss_jax),
            "distance": list(self.distance),
            "distance_gate": self.distance_gate,
            "notes": list(self.notes),
            "settings": shallow(self.settings),
            "environment": shallow(self.environment),
        }
        return saved(json.dumps(finite(payload), indent=1, allow_nan=False, default=str), path)
