"""The page while a run goes on: how often it is written, what it says when the run ends, what a full disk does."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t2t_common.run_page.page import PAGE_FILE
from t2t_common.run_page.writer import SECONDS, SHARE, RunPage
from t2t_common.workdir.errors import TrainingDivergedError
from t2t_common.workdir.interrupt import RunInterruptedError
from t2t_common.workdir.record import RECORD_FILE, Record
from tests.support.full_disk import on_full_disk
from tests.support.pages.recorded_runs import CONFUSION, STEPS, lines, record, written


class Clock:
    """Tells `now`; with every call that much more goes by."""

    def __init__(self, ticking: float = 0.0) -> None:
        self.now, self.ticking = 0.0, ticking

    def __call__(self) -> float:
        self.now += self.ticking
        return self.now


def begin(workdir: Path, *, first_step: int = 0, **options: Any) -> RunPage:
    facts = {"last_step": STEPS, "batch_size": 8, "config": record().config, "devices": "1 × cpu"}
    return RunPage(workdir, first_step=first_step, **{**facts, **options})


def text(workdir: Path) -> str:
    return (workdir / PAGE_FILE).read_text()


def read(workdir: Path) -> Record:
    found = Record.read(workdir)
    assert found is not None
    return found


def test_the_page_is_there_at_once_and_written_again_every_few_seconds(tmp_path: Path):
    clock = Clock()
    page = begin(tmp_path, clock=clock)
    assert "running" in text(tmp_path)
    for line in lines(20):
        page.write(line)
    page.show_confusion(CONFUSION, step=20)
    assert "step 0 of 160" in text(tmp_path)
    clock.now += SECONDS
    page.write(lines(25)[-1])
    assert "step 25 of 160" in text(tmp_path)
    assert "after epoch 1." in text(tmp_path)
    page.write(lines(30)[-1])
    assert "step 25 of 160" in text(tmp_path)


def test_a_page_that_takes_long_is_written_less_often(tmp_path: Path):
    clock = Clock(ticking=2.0)  # two seconds between the first and the last moment of a write
    page = begin(tmp_path, clock=clock)
    clock.ticking = 0.0
    end = clock.now
    for wait, shown in ((2 / SHARE - 1, "step 0 of 160"), (2 / SHARE, "step 5 of 160")):
        clock.now = end + wait
        page.write(lines(5)[0])
        assert shown in text(tmp_path)


def test_between_writes_a_line_costs_next_to_nothing(tmp_path: Path):
    page, line = begin(tmp_path, clock=Clock()), lines(5)[0]
    times = []
    for _ in range(100):
        start = time.thread_time()
        page.write(line)
        times.append(time.thread_time() - start)
    assert min(times) < 1e-4


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (None, "finished", ""),
        (TrainingDivergedError("step 9: loss is nan", 9), "diverged", "step 9: loss is nan"),
        (RunInterruptedError("stopped by SIGTERM, saved"), "stopped", "stopped by SIGTERM, saved"),
        (KeyboardInterrupt(), "stopped", "stopped by Ctrl-C"),
        (OSError(28, "disk full"), "failed", "OSError: [Errno 28] disk full"),
    ],
)
def test_the_page_says_how_the_run_ended(tmp_path: Path, error: BaseException | None, status: str, message: str):
    page = begin(tmp_path, clock=Clock())
    page.write(lines(5)[0])
    page.close(error)
    assert f": {status}</title>" in text(tmp_path)
    assert message in text(tmp_path)
    assert "step 5 of 160" in text(tmp_path) or status == "finished"
    assert (read(tmp_path).status, read(tmp_path).message) == (status, message)


def test_a_continued_run_goes_on_in_its_page(tmp_path: Path):
    """Its lines are those that metrics.jsonl kept; what was seen later is gone, its images and its start are not."""
    workdir = written(tmp_path, record(step=80, status="running"), lines(60))
    page = begin(workdir, first_step=60)
    for line in [line for line in lines() if line["step"] > 60]:
        page.write(line)
    page.close(None)
    run = read(workdir)
    assert [start.step for start in run.starts] == [0, 60]
    assert run.confusion is None
    assert run.samples == json.loads(json.dumps(record().samples))
    assert 'class="resumed"' in text(workdir)
    assert text(workdir).count("mean of epoch <b>") == 1
    assert "8 epochs, 160 steps" in text(workdir)


def test_a_run_that_begins_anew_forgets_the_one_before(tmp_path: Path):
    workdir = written(tmp_path, record(), [])
    begin(workdir)
    assert read(workdir).samples is None
    assert [start.step for start in read(workdir).starts] == [0]


def test_a_finished_run_that_is_called_again_keeps_its_time(tmp_path: Path):
    workdir = written(tmp_path, record(), lines())
    begin(workdir, first_step=STEPS).close(None)
    assert read(workdir).starts == record().starts
    assert "1 min 5 s" in text(workdir)


def test_the_images_are_those_of_the_batch(tmp_path: Path):
    page = begin(tmp_path, clock=Clock())
    images, targets = np.zeros((40, 8, 8, 3)), np.tile([0.9 * 0.9 + 0.1 / 3, 0.9 * 0.1 + 0.1 / 3, 0.1 / 3], (40, 1))
    page.show_samples(images, targets, step=1)
    assert text(tmp_path).count("data:image/png;base64,") == 12
    assert "wren 90%" in text(tmp_path)
    assert "robin &lt;b&gt; 10%" in text(tmp_path)


def test_a_run_without_a_recipe_has_a_page(tmp_path: Path):
    page = begin(tmp_path, config={})
    page.show_samples(np.zeros((4, 8, 8, 3)), np.zeros(4), step=1)
    page.show_confusion(np.eye(4, dtype=np.int64), step=1)
    page.close(None)
    assert "Confusion matrix" in text(tmp_path)
    assert "png" not in text(tmp_path)


def test_a_full_disk_is_complained_of_once_and_the_run_goes_on(tmp_path: Path):
    """In a process that can write no more than 4096 bytes to a file."""
    before = f"""
from pathlib import Path
from tests.common.run_page.test_writer import Clock, begin, lines
clock, workdir = Clock(), Path({str(tmp_path)!r})
page = begin(workdir, clock=clock)"""
    then = """
for line in lines():
    clock.now += 100
    page.write(line)
page.close(None)"""
    said = on_full_disk(before, then)
    assert said.count("\n") == said.count("report.html is left as it is, the run goes on: cannot write") == 1
    assert "step 0 of 160" in text(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {PAGE_FILE, RECORD_FILE}


def test_what_an_evaluation_warned_of_is_forgotten_with_it(tmp_path: Path):
    """A run goes on from before that evaluation; what the recipe was warned of stays."""
    page = begin(tmp_path)
    page.show_confusion(CONFUSION, step=40)
    page.warn({"average": "cannot move", "chance": "<b>guesses</b>"})
    page.close(None)
    assert "<li>&lt;b&gt;guesses&lt;/b&gt;</li>" in text(tmp_path)
    begin(tmp_path, first_step=40)
    assert read(tmp_path).warnings == {"average": "cannot move", "chance": "<b>guesses</b>"}
    begin(tmp_path, first_step=20)
    assert read(tmp_path).warnings == {"average": "cannot move"}
    begin(tmp_path)
    assert read(tmp_path).warnings == {}


@pytest.mark.parametrize("damaged", [3, ["a"], {"a": 1}])
def test_warnings_that_make_no_sense_are_no_record(damaged: Any, tmp_path: Path):
    begin(tmp_path)
    path = tmp_path / RECORD_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "warnings": damaged}))
    assert Record.read(tmp_path) is None
