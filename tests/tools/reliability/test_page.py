"""The page of reliability is what the results say, and every defect on it is held by a test that is there."""

from __future__ import annotations

import json
from pathlib import Path

from t2t_common.io import cli
from tests.docs.test_threats import functions
from tests.support.pages.code_blocks import ROOT
from tools.reliability import page, record


def test_the_page_is_written_from_the_results():
    assert page.render() == page.PAGE.read_text(), "python -m tools.reliability.page writes it"


def test_every_defect_is_held_by_a_test():
    for name, result in record.read().items():
        for defect in result["defects"]:
            path, _, test = defect["test"].partition("::")
            assert test.partition("[")[0] in functions(ROOT / path), f"{name}: {defect}"


def test_figures_tables_and_defects_are_all_there(tmp_path: Path):
    figures = {
        "kills": 12345,
        "lost": 0,
        "share": 0.98765,
        "by_reader": {"tar": {"cases": 7, "refused": True}, "idx": {"cases": 8, "note": "a | b* <c> [d] `e*`"}},
        "faults_tried": 12,
        "faults_survived": 11,
        "arrays_that_differ": 0,
        "arrays_compared": 9,
        "faults": [{"fault": "full disk", "times": 3, "survived": 2, "last_words": ["long"], "failure": "hung"}],
        "left_over": [],
        "survivors": [{"mutant": "parity/carry/convert.py:3", "why": "equal"}],
    }
    defect = record.Defect("A kill left half a file.", "tests/tools/reliability/test_page.py::test_it")
    record.write(tmp_path / "faults.json", "python -m tools.reliability.faults", figures, seconds=125, defects=[defect])
    record.write(tmp_path / "other_things.json", "python -m tools.reliability.other_things", {})
    out = tmp_path / "page.md"
    assert cli.run(page.main, ["--results", str(tmp_path), "--out", str(out)]) == cli.OK
    lines = out.read_text().splitlines()
    for line in (
        "| [Faults survived](#faults-survived) | 11 of 12 survived; of 9 arrays 0 differ |",
        "| [Versions](#versions) | not run yet |",
        "| [Other things](#other-things) | see below |",
        "| [Defects found](#defects-found) | 1, all of them fixed |",
        "| Kills | 12,345 |",
        "| Left over | none |",
        "| full disk | 3 | 2 | hung |",
        "| Lost | 0 |",
        "| Share | 0.9877 |",
        "### By reader",
        "|  | Cases | Refused | Note |",
        "| tar | 7 | yes |  |",
        "| idx | 8 |  | a \\| b\\* &lt;c&gt; \\[d\\] `e*` |",
        "| parity/carry/convert.py:3 | equal |",
        "`python -m tools.reliability.faults`, 2 min.",
        "| Faults survived | A kill left half a file. | `tests/tools/reliability/test_page.py::test_it` |",
        "## Other things",
        "Not run yet.",
    ):
        assert line in lines, line
    titles = [line[3:] for line in lines if line.startswith("## ")]
    assert titles == [title for title, _ in page.SECTIONS.values()] + ["Other things", "Defects found", "Machines"]
    assert sum(line.startswith("| Faults survived, Other things | ") for line in lines) == 1


def test_results_are_json_without_surprises(tmp_path: Path):
    record.write(tmp_path / "a.json", "python -m reliability.a", {"cases": 1})
    found = json.loads((tmp_path / "a.json").read_text())
    assert list(found) == ["command", "environment", "cases", "defects"]
    assert record.read(tmp_path) == {"a": found}
