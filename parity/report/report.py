"""The report of a check: text for the terminal, an HTML page, JUnit XML or JSON."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from parity.carry.convert import Entry, Ledger
from parity.measure.gates import Row
from parity.report import html, junit, terminal
from parity.report.findings import Cause, Findings, FormatRow, Trajectory
from parity.report.json_values import finite, restored, shallow, typed
from parity.report.power_report import power_from
from parity.report.text_file import saved

SCHEMA_VERSION = 1
SCHEMA_FILE = Path(__file__).with_name("report.schema.json")
"""JSON Schema of `Report.to_json`."""


@dataclasses.dataclass(frozen=True)
class Report(Findings):
    """Result of `parity.check`: all measurements, their gates and the verdict.

    Attributes:
        passed: Whether every gate holds.
        first_divergence: First module, in order of computation, with an error on correct inputs; None if there is none.
        causes: For each failing module, the single change under which PyTorch computes what JAX did, if one was found.
        rows, failures: All measurements, and the failing ones.
        notes: Notes on what passed conditionally or was not verified, one sentence each.
    """

    def __str__(self) -> str:
        return self.render(width=120)

    def render(self, width: int | None = None, color: bool = False) -> str:
        """Return the module tree, the summary and the failures as text."""
        return terminal.render(self, width, color)

    def brief(self) -> str:
        """Return the verdict, the causes and the first failures as text, for assertion messages."""
        return terminal.brief(self)

    # Files are written atomically and replace an existing file; a symbolic link is replaced, not followed.

    def to_html(self, path: str | Path | None = None) -> str:
        """Return the report as a self-contained HTML page, and write it to `path` if given.

        Raises:
            FileNotFoundError, ValueError: `path` cannot be written; the message gives the reason.
        """
        return saved(html.page(self), path)

    def to_junit(self, path: str | Path | None = None) -> str:
        """Return the report as JUnit XML, one testcase per layer or tensor and kind, and write it to `path` if given.

        Raises:
            FileNotFoundError, ValueError: `path` cannot be written; the message gives the reason.
        """
        return saved(junit.junit(self), path)

    def to_json(self, path: str | Path | None = None) -> str:
        """Return the complete report as JSON (see SCHEMA_FILE), and write it to `path` if given.

        Non-finite numbers are written as "inf", "-inf" or "nan".

        Raises:
            FileNotFoundError, ValueError: `path` cannot be written; the message gives the reason.
        """
        trajectory = self.trajectory
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
            "trajectory": trajectory and {**dataclasses.asdict(trajectory), "passed": trajectory.passed},
        }
        if self.power is not None:
            payload["power"] = self.power.payload()
        return saved(json.dumps(finite(payload), indent=1, allow_nan=False, default=str), path)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Parse a report written by `to_json`.

        Raises:
            ValueError: The text is not a valid report.
        """
        try:
            payload = json.loads(text)
            if payload["schema"] != SCHEMA_VERSION:
                raise ValueError(f"its schema is {payload['schema']!r}, this is {SCHEMA_VERSION}")
            ledger, trajectory = payload["ledger"], payload["trajectory"]
            return cls(
                rows=tuple(restored(Row, row) for row in payload["rows"]),
                ledger=Ledger(
                    tuple(restored(Entry, entry) for entry in ledger["entries"]),
                    typed(ledger["torch_only"], "tuple[str, ...]"),
                    typed(ledger["jax_only"], "tuple[str, ...]"),
                    typed(ledger.get("tied", []), "tuple[str, ...]"),
                    typed(ledger.get("notes", []), "tuple[str, ...]"),
                ),
                layers=tuple((typed(x["name"], "str"), typed(x["type"], "str")) for x in payload["layers"]),
                unpaired=typed(payload["unpaired"], "tuple[str, ...]"),
                notes=typed(payload.get("notes", []), "tuple[str, ...]"),
                settings=dict(payload["settings"]),
                environment=dict(payload["environment"]),
                causes=tuple(restored(Cause, cause) for cause in payload["causes"]),
                formats=tuple(restored(FormatRow, row) for row in payload["formats"]),
                trajectory=None if trajectory is None else restored(Trajectory, trajectory),
                power=None if payload.get("power") is None else power_from(payload["power"]),
            )
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise ValueError(f"not a report of parity: {ascii(str(error)[:150])[1:-1]}") from error


def read_report(path: Path) -> Report:
    """Read a report from a file written by `Report.to_json`.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is not a valid report; the message names it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no report at {path}: write one with python -m parity check NAME --json FILE")
    try:
        return Report.from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"cannot read {path} ({error}): write it anew") from error
