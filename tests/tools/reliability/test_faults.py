"""The short form of the campaign: `python -m tools.reliability.faults` has them all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from t2t_common.io import cli
from tools.reliability import faults
from tools.reliability.run_faults import process_faults
from tools.reliability.run_faults.process_faults import OF_JAX, OURS, PEER_SECONDS
from tools.reliability.run_faults.runs import PACKAGES, Ended, Lab, NotSurvivedError, Package, clear_end


def test_a_run_whose_worker_hangs_ends_and_is_continued_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(process_faults, "WORKER_TIMEOUT", 30)  # workers begin by importing torch
    row = faults.harm(Lab("t2t_torch", tmp_path, epochs=3), "data worker hangs", process_faults.worker_hangs)
    assert "failure" not in row
    assert (row["times"], row["survived"], row["lines_that_differ"], row["arrays_that_differ"]) == (1, 1, 0, [])
    assert row["lines_compared"] == 3 * 8 + 3 + 1
    assert 30 < row["most_seconds_until_the_last_words"] + 2 < 80
    assert row["last_words"][0].startswith("no batch of images arrived for 30 s")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_process_that_loses_another_ends_and_says_so(package: Package, tmp_path: Path):
    with Lab(package, tmp_path, processes=2, epochs=30).start(tmp_path / "run") as run:
        run.await_lines(2)
        run.processes[1].kill()
        code = run.end(PEER_SECONDS)[0]
        assert code == 2 or (package, code) == ("t2t_jax", -6)
        clear_end(run, OURS if code == 2 else OF_JAX, 1, code=code)


def fake(found: dict[str, Any], ends: list[Ended | None]) -> tuple[Any, Any]:
    """A lab whose runs always compare as `found`, and a trial."""

    class FakeLab(Lab):
        def finish(self, workdir: Path, **how: Any) -> None: ...

        def compare(self, workdir: Path) -> dict[str, Any]:
            return found

    def trial(lab: Lab, workdir: Path) -> Iterator[Ended | None]:
        yield from ends
        if not ends:
            raise NotSurvivedError("hangs")

    return FakeLab, trial


@pytest.mark.parametrize(
    ("lines", "names", "ends", "survived"),
    [(0, [], [None, Ended(2.5, "words")], 2), (1, [], [None], 0), (0, ["weights: a"], [None], 0), (0, [], [], 0)],
)
def test_a_fault_is_survived_if_nothing_differs(
    lines: int, names: list[str], ends: list[Ended | None], survived: int, tmp_path: Path
):
    lab, trial = fake({"lines_that_differ": lines, "arrays_that_differ": names}, ends)
    row = faults.harm(lab("t2t_jax", tmp_path), "second writer", trial)
    assert row["survived"] == survived
    assert row["times"] == max(1, len(ends))
    assert row.get("failure") == (None if ends else "hangs")


def test_a_result_keeps_what_it_holds_of_other_faults(tmp_path: Path):
    path = tmp_path / "faults.json"
    row = {"fault": "disk full", "package": "t2t_jax", "times": 2, "survived": 1, "seconds": 3}
    faults.save(path, row)
    faults.save(path, {**row, "package": "t2t_torch", "lines_compared": 4})
    faults.save(path, {**row, "survived": 2})
    result = json.loads(path.read_text())
    assert [row["package"] for row in result["faults"]] == ["t2t_jax", "t2t_torch"]
    assert (result["faults_tried"], result["faults_survived"], result["lines_compared"]) == (4, 3, 4)
    assert result["seconds"] == 6


def test_an_unknown_fault_is_refused(capsys: pytest.CaptureFixture[str]):
    assert cli.run(faults.main, ["--only", "flood"]) == cli.MISUSED
    assert "no fault 'flood': choose among kill -9, disk full" in capsys.readouterr().err
