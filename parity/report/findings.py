"""What a check found: measurements, causes, and the verdict that follows from them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from parity.carry.convert import Ledger
from parity.environment import fingerprint
from parity.measure.gates import Row
from parity.report.json_values import shallow
from parity.report.power_report import PowerReport


@dataclasses.dataclass(frozen=True)
class Cause:
    """The one switch that, set on a failing module, restores equality.

    Attributes:
        module: dotted path of the module.
        switch: short name of the switch, "gelu" for example.
        description: what is different, in words.
        error_before, error_after: relF of the module on correct inputs in float64, without and with the switch.
    """

    module: str
    switch: str
    description: str
    error_before: float
    error_after: float


@dataclasses.dataclass(frozen=True)
class FormatRow:
    """A figure in a reduced format: relF of JAX (`error`) and of PyTorch to the float32 run at highest precision.

    Attributes:
        name: what was measured, "logits" for example.
        format: "bfloat16", "tf32" ...
        cap: the largest error that passes.
    """

    name: str
    format: str
    error: float
    cap: float
    torch_error: float | None = None

    @property
    def passed(self) -> bool:
        return self.error <= self.cap


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """Training side by side; element i of each series belongs to step i + 1.

    Attributes:
        loss_torch, loss_jax: the loss, in float64.
        distance64: distance between both frameworks' weights over the distance travelled, in float64.
        distance32_jax, distance32_torch: the same between a framework's float32 run and PyTorch's float64 one.
        gate64, gate32: the largest distances that pass.
        ratio32, floor32: JAX's float32 may stray ratio32 times as far as PyTorch's, plus floor32.
    """

    loss_torch: tuple[float, ...]
    loss_jax: tuple[float, ...]
    distance64: tuple[float, ...]
    distance32_jax: tuple[float, ...]
    distance32_torch: tuple[float, ...]
    gate64: float = 1e-10
    gate32: float = 1e-3
    ratio32: float = 3.0
    floor32: float = 0.0

    def __post_init__(self) -> None:
        series = (self.loss_torch, self.loss_jax, self.distance64, self.distance32_jax, self.distance32_torch)
        if len({len(values) for values in series}) != 1:
            raise ValueError(f"the series of a trajectory differ in length: {[len(values) for values in series]}")

    @property
    def limits32(self) -> tuple[float, ...]:
        """The largest distance32_jax that passes, step by step."""
        return tuple(min(self.gate32, self.ratio32 * d + self.floor32) for d in self.distance32_torch)

    @property
    def passed(self) -> bool:
        """Whether every step holds; a trajectory without steps does not pass."""
        double = all(distance <= self.gate64 for distance in self.distance64)
        single = all(distance <= limit for distance, limit in zip(self.distance32_jax, self.limits32, strict=True))
        return bool(self.distance64) and double and single


@dataclasses.dataclass(frozen=True)
class Findings:
    """Every measurement of one check. `parity.Report` adds how it is written.

    Attributes:
        layers: (name, PyTorch type) of the layer calls, in the order in which they return.
        power: what these inputs and weights would have shown, if it was asked for.
        notes: what passed with a condition or was not verified, a sentence each.
    """

    rows: tuple[Row, ...]
    ledger: Ledger
    layers: tuple[tuple[str, str], ...]
    unpaired: tuple[str, ...] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, Any] = dataclasses.field(default_factory=fingerprint)
    causes: tuple[Cause, ...] = ()
    formats: tuple[FormatRow, ...] = ()
    trajectory: Trajectory | None = None
    notes: tuple[str, ...] = ()
    power: PowerReport | None = None

    @property
    def passed(self) -> bool:
        """Whether every gate holds; a report without measurements does not pass."""
        return bool(self.layers) and bool(self.rows) and self.failed_count == 0

    @property
    def failures(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if not row.passed)

    @property
    def count(self) -> int:
        """How many measurements there are; a trajectory is one."""
        return len(self.rows) + len(self.formats) + (self.trajectory is not None)

    @property
    def failed_count(self) -> int:
        formats = sum(not row.passed for row in self.formats)
        return len(self.failures) + formats + (self.trajectory is not None and not self.trajectory.passed)

    @property
    def first_divergence(self) -> str | None:
        """The first module, in the order of computation, that errs on correct inputs; None if there is none.

        Among forced rows alone: there every module got the reference's inputs, and its children's correct outputs.
        What a module passes on to its children is its own work, so a wrong "calls" row names the module around.
        Where all of these hold, it is the first module that draws or updates something else in training mode.
        """
        structure = next((row for row in self.rows if row.kind == "structure"), None)
        if structure is not None:
            return structure.name or "the model"
        order = {name: i for i, (name, _) in enumerate(self.layers)}
        failed = [row for row in self.rows if row.mode == "forced" and not row.passed and row.name in order]
        if not failed:
            return self._first_in_training
        # float32 rows only speak where float64 is silent.
        precision = "float64" if any(row.precision == "float64" for row in failed) else "float32"
        first = min((row for row in failed if row.precision == precision), key=lambda row: order[row.name])
        owner = first.name
        if first.kind == "calls":
            owner = around(owner)
            while owner and owner not in order:  # a list of modules is not called
                owner = around(owner)
        return owner or "the model"

    @property
    def _first_in_training(self) -> str | None:
        laws = ("dropout rate", "dropout draws", "random draw", "structure", "layer", "calls", "output", "buffer")
        failed = [row for row in self.failures if row.kind in laws and row.mode == "train"]
        names = [around(row.name) if row.kind in ("buffer", "calls") else row.name for row in failed]
        return names[0] or "the model" if names else None

    @property
    def title(self) -> str:
        """The model's name, as far as the settings tell it."""
        return str(shallow(self.settings.get("name") or self.settings.get("torch_model") or "model"))

    @property
    def tally(self) -> str:
        """How many measurements there are, and how many of them fail."""
        if not self.rows or not self.layers:
            return "nothing was compared"
        if self.passed:
            return f"{self.count} measurements, {len(self.layers)} layer calls, every gate holds"
        return f"{self.failed_count} of {self.count} measurements fail"

    @property
    def verdict(self) -> str:
        """One line: equal or different, how many measurements, where it starts."""
        where = f"; first divergence: {self.first_divergence}" if self.first_divergence else ""
        if self.failures and all(row.kind == "configuration" for row in self.failures):
            return f"DIFFERENT: the algorithm is equal, the configuration is not: {self.failures[0].note}"
        return f"{'EQUAL' if self.passed else 'DIFFERENT'}: {self.tally}{where}"

    def worst(self, kind: str, precision: str, mode: str | None = None) -> Row | None:
        """The row closest to its gate, or furthest beyond."""
        rows = [r for r in self.rows if (r.kind, r.precision) == (kind, precision) and mode in (None, r.mode)]
        return max(rows, key=tightness, default=None)


def around(name: str) -> str:
    """The module around `name`: its path without the call number and the last part."""
    return name.split("#")[0].rpartition(".")[0]


def tightness(row: Row) -> float:
    """How much of its gate a row uses up; a failed row more than any that passed."""
    if row.error == 0 and not row.note:
        return 0.0
    return math.inf if row.gate == 0 or row.note or math.isnan(row.error) else row.error / row.gate
