"""Results of a check: measurements, causes, and the verdict derived from them."""

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
    """The single switch that, applied to a failing module, restores equality.

    Attributes:
        module: Dotted path of the module.
        switch: Short name of the switch, for example "gelu".
        description: Description of the difference.
        error_before, error_after: relF of the module on correct inputs in float64, without and with the switch.
    """

    module: str
    switch: str
    description: str
    error_before: float
    error_after: float


@dataclasses.dataclass(frozen=True)
class FormatRow:
    """Error in a reduced format: relF to the float32 run at highest precision.

    Attributes:
        name: Measured quantity, for example "logits".
        format: Name of the format: "bfloat16", "tf32", ...
        error, torch_error: Of the port and of the reference: JAX and PyTorch, or exchanged with reference="jax".
        cap: Largest error that passes.
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
        loss_torch, loss_jax: Loss in float64.
        distance64: Distance between both frameworks' weights relative to the distance travelled, in float64.
        distance32_jax, distance32_torch: The same between a framework's float32 run and PyTorch's float64 run.
        gate64, gate32: Largest distances that pass.
        ratio32, floor32: JAX's float32 distance may be up to ratio32 times PyTorch's, plus floor32.
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
        """Largest distance32_jax that passes at each step."""
        return tuple(min(self.gate32, self.ratio32 * d + self.floor32) for d in self.distance32_torch)

    @property
    def passed(self) -> bool:
        """Whether every step passes; a trajectory without steps does not pass."""
        double = all(distance <= self.gate64 for distance in self.distance64)
        single = all(distance <= limit for distance, limit in zip(self.distance32_jax, self.limits32, strict=True))
        return bool(self.distance64) and double and single


@dataclasses.dataclass(frozen=True)
class Findings:
    """All measurements of one check. `parity.Report` adds the output formats.

    Attributes:
        layers: (name, PyTorch type) of the layer calls, in the order in which they return.
        power: Mistakes that these inputs and weights would reveal, if requested.
        notes: Notes on what passed conditionally or was not verified, one sentence each.
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
    def sides(self) -> tuple[str, str]:
        """Names of the port, which is judged, and of the reference."""
        return ("PyTorch", "JAX") if self.settings.get("reference") == "jax" else ("JAX", "PyTorch")

    @property
    def failures(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if not row.passed)

    @property
    def count(self) -> int:
        """Number of measurements; a trajectory counts as one."""
        return len(self.rows) + len(self.formats) + (self.trajectory is not None)

    @property
    def failed_count(self) -> int:
        formats = sum(not row.passed for row in self.formats)
        return len(self.failures) + formats + (self.trajectory is not None and not self.trajectory.passed)

    @property
    def first_divergence(self) -> str | None:
        """First module, in order of computation, with an error on correct inputs; None if there is none.

        Only forced rows count, in which every module receives the reference's inputs and the correct outputs of its
        children. A module computes the inputs of its children, so a failing "calls" row points to the enclosing module.
        If all forced rows pass, it is the first module that fails in training mode.
        """
        structure = next((row for row in self.rows if row.kind == "structure"), None)
        if structure is not None:
            return structure.name or "the model"
        order = {name: i for i, (name, _) in enumerate(self.layers)}
        failed = [row for row in self.rows if row.mode == "forced" and not row.passed and row.name in order]
        if not failed:
            return self._first_in_training
        # float32 rows count only if no float64 row fails.
        precision = "float64" if any(row.precision == "float64" for row in failed) else "float32"
        first = min((row for row in failed if row.precision == precision), key=lambda row: order[row.name])
        owner = first.name
        if first.kind == "calls":
            owner = around(owner)
            while owner and owner not in order:  # a ModuleList is not called
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
        """Name of the model from the settings, or "model"."""
        return str(shallow(self.settings.get("name") or self.settings.get("torch_model") or "model"))

    @property
    def tally(self) -> str:
        """One line with the numbers of measurements and failures."""
        if not self.rows or not self.layers:
            return "nothing was compared"
        if self.passed:
            return f"{self.count} measurements, {len(self.layers)} layer calls, every gate holds"
        return f"{self.failed_count} of {self.count} measurements fail"

    @property
    def verdict(self) -> str:
        """One line: equal or different, the number of measurements, the first divergence."""
        where = f"; first divergence: {self.first_divergence}" if self.first_divergence else ""
        if self.failures and all(row.kind == "configuration" for row in self.failures):
            return f"DIFFERENT: the algorithm is equal, the configuration is not: {self.failures[0].note}"
        side = "; JAX is the reference" if self.settings.get("reference") == "jax" else ""
        return f"{'EQUAL' if self.passed else 'DIFFERENT'}: {self.tally}{where}{side}"

    def worst(self, kind: str, precision: str, mode: str | None = None) -> Row | None:
        """Return the row with the largest ratio of error to gate."""
        rows = [r for r in self.rows if (r.kind, r.precision) == (kind, precision) and mode in (None, r.mode)]
        return max(rows, key=tightness, default=None)


def around(name: str) -> str:
    """Return the module that encloses `name`: its path without the call number and the last part."""
    return name.split("#")[0].rpartition(".")[0]


def tightness(row: Row) -> float:
    """Return the ratio of a row's error to its gate; infinite for a gate of 0, a NaN error or a note."""
    if row.error == 0 and not row.note:
        return 0.0
    return math.inf if row.gate == 0 or row.note or math.isnan(row.error) else row.error / row.gate
