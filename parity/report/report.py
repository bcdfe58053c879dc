"""What a check found. `digest` arranges it, `terminal`, `html` and `junit` write it for people and for machines."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity.carry.convert import Entry, Ledger
from parity.environment import fingerprint
from parity.measure.gates import Row
from parity.report.text_file import saved

if TYPE_CHECKING:
    from parity.report.power_report import PowerReport

SCHEMA_VERSION = 1
SCHEMA_FILE = Path(__file__).with_name("report.schema.json")
"""JSON Schema of `Report.to_json`."""


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
class Report:
    """Every measurement of one check.

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

    # For people and machines. The writers import this module, so they are imported where they are used.

    def __str__(self) -> str:
        return self.render(width=120)

    def render(self, width: int | None = None, color: bool = False) -> str:
        """Module tree, summary and failures as text."""
        from parity.report.terminal import render

        return render(self, width, color)

    def brief(self) -> str:
        """Verdict, causes and the first failures as text: what an assertion message needs."""
        from parity.report.terminal import brief

        return brief(self)

    # A file is written whole or not at all, in place of what is there: where that is a link, not through it.

    def to_html(self, path: str | Path | None = None) -> str:
        """One self-contained page; also written to `path` if given.

        Raises:
            FileNotFoundError, ValueError: `path` cannot be written; the message says why.
        """
        from parity.report.html import page

        return saved(page(self), path)

    def to_junit(self, path: str | Path | None = None) -> str:
        """JUnit XML, one testcase per layer or tensor and kind; also written to `path` if given.

        Raises:
            FileNotFoundError, ValueError: `path` cannot be written; the message says why.
        """
        from parity.report.junit import junit

        return saved(junit(self), path)

    def to_json(self, path: str | Path | None = None) -> str:
        """The whole report (SCHEMA_FILE says how); a figure that is not finite is "inf", "-inf" or "nan". Also written
        to `path` if given.

        Raises:
            FileNotFoundError, ValueError: `path` cannot be written; the message says why.
        """
        payload = {
            "schema": SCHEMA_VERSION,
            "passed": self.passed,
            "verdict": self.verdict,
            "first_divergence": self.first_divergence,
            "settings": shallow(self.settings),
            "environment": shallow(self.environment),
            "unpaired": list(self.unpaired),
            "notes": list(self.notes),
            "ledger": dataclasses.asdict(self.ledger),
            "layers": [{"name": name, "type": kind} for name, kind in self.layers],
            "rows": [{**dataclasses.asdict(row), "passed": row.passed} for row in self.rows],
            "causes": [dataclasses.asdict(cause) for cause in self.causes],
            "formats": [{**dataclasses.asdict(row), "passed": row.passed} for row in self.formats],
            "trajectory": None if self.trajectory is None else _trajectory(self.trajectory),
        }
        if self.power is not None:
            payload["power"] = self.power.payload()
        return saved(json.dumps(finite(payload), indent=1, allow_nan=False, default=str), path)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report that `to_json` wrote.

        Raises:
            ValueError: the text is not such a report.
        """
        try:
            payload = json.loads(text)
            if payload["schema"] != SCHEMA_VERSION:
                raise ValueError(f"its schema is {payload['schema']!r}, this is {SCHEMA_VERSION}")
            ledger, trajectory = payload["ledger"], payload["trajectory"]
            return cls(
                rows=tuple(_restored(Row, row) for row in payload["rows"]),
                ledger=Ledger(
                    tuple(_restored(Entry, entry) for entry in ledger["entries"]),
                    _typed(ledger["torch_only"], "tuple[str, ...]"),
                    _typed(ledger["jax_only"], "tuple[str, ...]"),
                    _typed(ledger.get("tied", []), "tuple[str, ...]"),
                    _typed(ledger.get("notes", []), "tuple[str, ...]"),
                ),
                layers=tuple((_typed(x["name"], "str"), _typed(x["type"], "str")) for x in payload["layers"]),
                unpaired=_typed(payload["unpaired"], "tuple[str, ...]"),
                notes=_typed(payload.get("notes", []), "tuple[str, ...]"),
                settings=dict(payload["settings"]),
                environment=dict(payload["environment"]),
                causes=tuple(_restored(Cause, cause) for cause in payload["causes"]),
                formats=tuple(_restored(FormatRow, row) for row in payload["formats"]),
                trajectory=None if trajectory is None else _restored(Trajectory, trajectory),
                power=_power(payload.get("power")),
            )
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise ValueError(f"not a report of parity: {ascii(str(error)[:150])[1:-1]}") from error


def read_report(path: Path) -> Report:
    """The report in a file that holds what `Report.to_json` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds something else; the message names it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no report at {path}: write one with python -m parity check NAME --json FILE")
    try:
        return Report.from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"cannot read {path} ({error}): write it anew") from error


def around(name: str) -> str:
    """The module around `name`: its path without the call number and the last part."""
    return name.split("#")[0].rpartition(".")[0]


def tightness(row: Row) -> float:
    """How much of its gate a row uses up; a failed row more than any that passed."""
    if row.error == 0 and not row.note:
        return 0.0
    return math.inf if row.gate == 0 or row.note or math.isnan(row.error) else row.error / row.gate


def _trajectory(trajectory: Trajectory) -> dict[str, Any]:
    return {**dataclasses.asdict(trajectory), "passed": trajectory.passed}


def _power(payload: Mapping[str, Any] | None) -> PowerReport | None:
    from parity.report.power_report import restored

    return None if payload is None else restored(payload)


MOST_NESTED = 50
"""Levels of dictionaries and lists in settings: Python's own writers end at some hundreds."""


def shallow(value: Any, most: int = MOST_NESTED) -> Any:
    """`value` with a note in place of dictionaries and lists that lie deeper than `most` levels."""
    if isinstance(value, Mapping | list | tuple) and most == 0:
        return f"(nested more than {MOST_NESTED} deep: left out)"
    if isinstance(value, Mapping):
        return {key: shallow(item, most - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [shallow(item, most - 1) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def finite(value: Any) -> Any:
    """JSON has no infinity and no NaN: those become strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _restored(cls: type[Any], fields: Mapping[str, Any]) -> Any:
    """An instance of a dataclass from its JSON: strings back to figures, lists to tuples; "passed" is computed."""
    types = {field.name: str(field.type) for field in dataclasses.fields(cls)}
    return cls(**{name: _typed(value, types[name]) for name, value in fields.items() if name != "passed"})


MOST_DOTS = 100
"""In the path of a module: deeper than any model, and not as deep as Python can go."""


def _typed(value: Any, kind: str) -> Any:
    """`value`, of JSON, as a field of `kind`, which is its annotation: "str", "float | None", "tuple[int, ...]" ..."""
    if value is None and kind.endswith("| None"):
        return None
    if kind.startswith("tuple[") and isinstance(value, list):
        return tuple(_typed(item, kind.removeprefix("tuple[").split(",")[0]) for item in value)
    if kind.startswith("float") and (type(value) in (int, float) or value in ("inf", "-inf", "nan")):
        return float(value)
    if kind.startswith("int") and type(value) is int:
        return value
    if kind.startswith("str") and isinstance(value, str) and value.count(".") <= MOST_DOTS:
        return value
    raise ValueError(f"{str(value)[:60]!r} in place of {kind}")
