from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from t2t_common.workdir.record import PACKAGES, RECORD_FILE, Record, environment
from tests.support.pages.recorded_runs import STEPS, record, resumed


def test_what_is_saved_is_read(tmp_path: Path):
    assert Record.read(tmp_path) is None
    resumed().save(tmp_path)
    read = Record.read(tmp_path)
    assert read is not None
    assert json.loads(json.dumps(read.samples)) == json.loads(json.dumps(resumed().samples))
    assert (read.starts, read.config, read.confusion) == (resumed().starts, resumed().config, resumed().confusion)


def test_fields_of_other_versions_are_no_hindrance(tmp_path: Path):
    (tmp_path / RECORD_FILE).write_text(json.dumps({"status": "stopped", "unheard_of": 1}))
    assert Record.read(tmp_path) == Record(status="stopped")


DEEP = '{"status": "stopped", "config": {"a": ' + "[" * 900 + "]" * 900 + "}}"
"""What can be read, but not written again."""


@pytest.mark.parametrize("text", ["", "{", "[]", '{"starts": [{"unheard_of": 1}]}', DEEP])
def test_a_file_that_makes_no_sense_is_as_none(tmp_path: Path, text: str):
    (tmp_path / RECORD_FILE).write_text(text)
    assert Record.read(tmp_path) is None


def test_a_run_that_is_taken_up_forgets_what_came_later():
    run = record(step=80, message="stopped", status="stopped")
    start = run.begin(60, "a device")
    assert start is run.starts[-1]
    assert (start.step, start.devices, len(run.starts)) == (60, "a device", 2)
    assert (run.status, run.message, run.confusion) == ("running", "", None)
    run = record(step=60)
    run.begin(60, "")
    assert run.confusion is not None


def test_a_finished_run_is_not_taken_up():
    run = record()
    assert run.begin(STEPS, "") is None
    assert run.starts == record().starts


def test_the_time_is_that_of_all_processes():
    assert record().seconds == 65
    assert resumed().seconds == 65 + 5400
    turned_back = resumed()
    turned_back.starts[0].until = "2001-01-01T00:00:00+00:00"
    assert turned_back.seconds == 5400


def test_the_command_is_what_was_typed(tmp_path: Path):
    (tmp_path / "say.py").write_text("from t2t_common.workdir.record import command; print(command())")
    args = [sys.executable, "-m", "say", "two words"]
    path = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[3]}"}
    done = subprocess.run(args, capture_output=True, text=True, check=True, env=path)
    assert done.stdout == f"{Path(sys.executable).name} -m say 'two words'\n"


def test_times_have_a_zone_and_versions_are_those_installed():
    run = Record(last_step=1)
    start = run.begin(0, "")
    assert start is not None
    assert datetime.fromisoformat(start.began).tzinfo is not None
    assert environment()["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(PACKAGES) <= environment().keys()


def test_a_full_disk_is_named(tmp_path: Path):
    (tmp_path / RECORD_FILE).mkdir()
    with pytest.raises(ValueError, match="cannot write"):
        record().save(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"status": 3},
        {"last_step": "x"},
        {"last_step": 10**400},
        {"environment": [1]},
        {"config": None},
        {"config": {"recipe": 3}},
        {"config": {"num_classes": 10**9}},
        {"samples": 3},
        {"confusion": {"step": "x", "classes": 3}},
        {"confusion": {"step": 1, "classes": 10**9, "counts": []}},
        {"starts": [{"step": 0, "began": 3, "until": "", "command": "", "devices": ""}]},
    ],
)
def test_a_record_that_makes_no_sense_is_none(tmp_path: Path, changes: dict[str, Any]):
    (tmp_path / RECORD_FILE).write_text(json.dumps({**dataclasses.asdict(record()), **changes}))
    assert Record.read(tmp_path) is None


def test_brackets_without_end_are_no_record(tmp_path: Path):
    (tmp_path / RECORD_FILE).write_text('{"config": ' + "[" * 100_000)
    assert Record.read(tmp_path) is None
