"""What a campaign leaves behind: one JSON file in `results`, from which `python -m tools.reliability.page` writes the
page.

{"command": how to repeat it, "environment": ..., "seconds": ..., figures of the campaign, "defects": [...]}

The defects are entered in the file by hand, and stay there when the campaign runs again.

Figures are numbers, texts, or tables (a list of rows, or rows by their name; a row is a dict of plain values).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t2t_common.io.files import write_text
from t2t_common.workdir.record import environment

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "tools" / "reliability" / "results"
OWN = ("command", "environment", "seconds", "defects")
"""What this file adds to the figures of a campaign."""


@dataclasses.dataclass(frozen=True)
class Defect:
    """A fault of the product that a campaign found."""

    what: str
    """What went wrong, in one sentence; it is fixed."""
    test: str
    """The test that holds the fix, as pytest names it: tests/FOLDER/test_FILE.py::test_NAME."""


def write(
    path: Path,
    command: str,
    figures: Mapping[str, Any],
    *,
    seconds: float | None = None,
    defects: Sequence[Defect] | None = None,
) -> None:
    """Writes the result of a campaign, whole or not at all.

    Args:
        path: the file, by default of a campaign `RESULTS / "NAME.json"`.
        command: what repeats it: "python -m reliability.NAME --cases 100000".
        figures: what was found, ready for JSON.
        seconds: how long it took.
        defects: what it found wrong; None takes those that `RESULTS` has of this campaign.

    Raises:
        ValueError: `figures` has a name of `OWN`, or the file cannot be written.
    """
    if taken := figures.keys() & set(OWN):
        raise ValueError(f"figures of a campaign cannot be called {sorted(taken)[0]!r}: record.write adds it")
    defects = known_defects(path.stem) if defects is None else defects
    record = {
        "command": command,
        "environment": environment(),
        **({} if seconds is None else {"seconds": round(seconds)}),
        **figures,
        "defects": [dataclasses.asdict(defect) for defect in defects],
    }
    write_text(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def known_defects(campaign: str) -> list[Defect]:
    """The defects that a campaign has found until now, all of them fixed."""
    path = RESULTS / f"{campaign}.json"
    return [Defect(**defect) for defect in json.loads(path.read_text())["defects"]] if path.is_file() else []


def read(results: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Every result in the folder `results`, by the name of its campaign."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))}
