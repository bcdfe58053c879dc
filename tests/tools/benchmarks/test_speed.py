"""The command takes turns, writes what it found, and says what it cannot do. No time is judged."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from t2t_common.evaluation import cpu_chunks
from t2t_common.io import cli
from tools.benchmarks import contestants, speed
from tools.benchmarks.chart import chart

TINY = ["--model", "t2t_vit_7", "--batch", "1", "--img-size", "32", "--rounds", "2", "--timm-python", "none"]


def test_both_tasks_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.run(speed.main, [*TINY, "--json", str(tmp_path / "speed.json")]) == cli.OK
    report = json.loads((tmp_path / "speed.json").read_text())
    assert list(report["tasks"]) == ["inference", "training"]
    others = ["t2t_jax", "t2t_torch", "plain PyTorch"]
    for task, found in report["tasks"].items():
        in_parts = [speed.IN_PARTS] if task == "training" else []
        assert list(found["contestants"]) == others[:2] + in_parts + others[2:]
        for name, figures in found["contestants"].items():
            assert len(figures["seconds"]) == 2
            assert set(figures["times_as_fast_as"]) == set(found["contestants"]) - {name}
            limit = found["limit_images_a_second"]
            assert figures["share_of_limit"] == pytest.approx(figures["images_a_second"] / limit)
    shown = capsys.readouterr().out
    assert "t2t_jax" in shown
    assert "GFLOP/s" in shown
    drawing = ElementTree.fromstring(chart(report))
    assert len(drawing.findall("{*}rect")) == 7


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--official", "/nowhere"], "make test-timm"),
        (["--only", "nobody"], "none of matrix_product, t2t_jax"),
        (["--rounds", "0"], "at least one"),
    ],
)
def test_what_cannot_be_done(options: list[str], says: str, capsys: pytest.CaptureFixture[str]):
    assert cli.run(speed.main, [*TINY, *options]) == cli.MISUSED
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_ratio_is_that_of_the_rounds():
    slow, fast = (speed.Contestant(name, None) for name in ("slow", "fast"))  # type: ignore[arg-type]
    for seconds, ratio in ((2.0, 2), (40.0, 4), (3.0, 3)):
        slow.seconds.append(seconds)
        fast.seconds.append(seconds / ratio)
    assert speed._ratio(slow, fast) == 3


def test_the_first_call_of_a_turn_does_not_count(monkeypatch: pytest.MonkeyPatch):
    times = iter([9.0, 9.0, 9.0, 8.0, 1.0, 3.0])
    contestant = speed.Contestant("some", None)  # type: ignore[arg-type]
    monkeypatch.setattr(contestant, "_call", lambda: contestant.answers.append({"seconds": next(times)}))
    contestant.take_turn(2, counts=False)
    contestant.take_turn(2, counts=True)
    assert contestant.seconds == [2.0]


def test_in_parts_is_a_step_in_the_parts_of_evaluation(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu_chunks, "available_cores", lambda: 2)
    monkeypatch.setattr(contestants, "t2t_jax", lambda setup, task, *, grad_accum_steps: (task, grad_accum_steps))
    assert contestants.t2t_jax_in_parts(contestants.Setup(batch=16), "training") == ("training", 4)
