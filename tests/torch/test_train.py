"""Whole runs, in seconds: what survives an interruption, what the user reads, who reads the weights."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from t2t_common.evaluation.accuracy import Accuracy
from t2t_common.io import cli
from t2t_common.run.reporter import Reporter, TrainingDivergedError
from t2t_common.run_page import PAGE_FILE
from t2t_common.run_page.confusion import dense
from t2t_common.workdir.interrupt import RunInterruptedError
from t2t_common.workdir.lock import locked
from t2t_common.workdir.record import Record
from t2t_config import Recipe, epoch_lr
from t2t_torch import create_model, load_checkpoint, read_state_dict
from t2t_torch import evaluate as evaluation
from t2t_torch import train as training
from t2t_torch.train import prepare, train
from t2t_torch.training.checkpoints import TrainingCheckpoints
from t2t_torch.training.compute_dtype import WithComputeDtype
from tests.support.small_data import VAL_IMAGES
from tools.reliability.run_faults.runs import TIMES

STEPS_PER_EPOCH, EPOCHS = 8, 5
ROOT = Path(__file__).parents[2]


def metrics(workdir: Path) -> list[dict[str, Any]]:
    """Lines of the run's log, without times."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def finished(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Accuracy]:
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, train(recipe, workdir)


def test_it_learns_and_says_so(finished: tuple[Path, Accuracy], recipe: Recipe):
    workdir, result = finished
    lines = metrics(workdir)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, EPOCHS * STEPS_PER_EPOCH + 1))
    assert {frozenset(line) for line in steps} == {frozenset({"step", "loss", "grad_norm", "lr", "epoch"})}
    losses = [line["loss"] for line in steps]
    assert np.mean(losses[-STEPS_PER_EPOCH:]) < 0.6 < 1.2 < np.mean(losses[:STEPS_PER_EPOCH])
    assert result.images == VAL_IMAGES
    counted = [line for line in lines if "top1_correct" in line]
    assert len(counted) == recipe.total_epochs
    assert counted[-1]["top1_correct"] == result.top1_correct >= 0.9 * VAL_IMAGES
    assert [line["lr"] for line in steps][::STEPS_PER_EPOCH] == [epoch_lr(recipe, epoch) for epoch in range(EPOCHS)]


def test_the_page_of_a_finished_run(finished: tuple[Path, Accuracy], recipe: Recipe):
    """What classes are taken for is counted over every validation image, and the images are there."""
    workdir, result = finished
    run = Record.read(workdir)
    assert run is not None
    assert (run.status, run.last_step, len(run.starts)) == ("finished", EPOCHS * STEPS_PER_EPOCH, 1)
    assert run.confusion is not None
    assert run.confusion["step"] == EPOCHS * STEPS_PER_EPOCH
    counts = dense(run.confusion["counts"], 4)
    assert (counts.sum(), counts.trace()) == result[:2]
    assert run.samples is not None
    assert [len(image["labels"]) for image in run.samples["images"]] == [1] * recipe.batch_size
    page = (workdir / PAGE_FILE).read_text()
    assert f"{result.top1:.2f} %" in page
    assert page.count("<figure>") == 6


def interrupt(at_step: int, how: Callable[[], None]) -> Callable[..., None]:
    original = Reporter.step

    def step(self: Reporter, step: int, *args: Any, **kwargs: Any) -> None:
        original(self, step, *args, **kwargs)
        if step == at_step:
            how()

    return step


def ctrl_c() -> None:
    raise KeyboardInterrupt


def continue_and_compare(recipe: Recipe, workdir: Path, finished: tuple[Path, Accuracy]) -> None:
    """Ends the run in `workdir`; all it leaves is what the finished one left."""
    assert train(dataclasses.replace(recipe, data_threads=0), workdir) == finished[1]
    assert metrics(workdir) == metrics(finished[0])
    run, whole = Record.read(workdir), Record.read(finished[0])
    assert run is not None
    assert whole is not None
    assert (run.status, len(run.starts)) == ("finished", 2)
    assert (run.samples, run.confusion) == (whole.samples, whole.confusion)
    assert (workdir / PAGE_FILE).read_text().count("continued after step") >= 1
    for use_ema in (True, False):
        here, there = (read_state_dict(folder, use_ema=use_ema) for folder in (workdir, finished[0]))
        assert all(torch.equal(here[name], there[name]) for name in there)


@pytest.mark.parametrize(("every_steps", "saved_at"), [(None, 16), (3, 27)])
def test_an_interrupted_run_continues_bit_for_bit(
    every_steps: int | None,
    saved_at: int,
    finished: tuple[Path, Accuracy],
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Stopped in the middle of epoch 4, saved in epoch 2 or in the middle of epoch 4; other threads afterwards."""
    recipe = dataclasses.replace(recipe, checkpoint_every_steps=every_steps, keep_best=False)
    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "step", interrupt(28, ctrl_c))
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path)
    assert TrainingCheckpoints(tmp_path, keep=2).latest_step == saved_at
    continue_and_compare(recipe, tmp_path, finished)


def test_a_run_that_gets_sigterm_saves_and_continues(
    finished: tuple[Path, Accuracy], recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In the middle of epoch 3; the step that it came in is done and saved."""
    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "step", interrupt(20, lambda: signal.raise_signal(signal.SIGTERM)))
        with pytest.raises(RunInterruptedError, match="by SIGTERM, saved at step 20 of 40: run the same command"):
            train(recipe, tmp_path)
    assert metrics(tmp_path)[-1]["step"] == 20
    continue_and_compare(recipe, tmp_path, finished)


def test_a_killed_run_continues_bit_for_bit(finished: tuple[Path, Accuracy], recipe: Recipe, tmp_path: Path):
    recipe = dataclasses.replace(recipe, checkpoint_every_steps=1)
    code = f"from t2t_config import Recipe; from t2t_torch.train import train; train({recipe!r}, {str(tmp_path)!r})"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL)
    log, deadline = tmp_path / "metrics.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline and not (log.exists() and len(log.read_text().splitlines()) > 12):
        time.sleep(0.05)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    saved = TrainingCheckpoints(tmp_path, keep=2).latest_step
    assert saved is not None
    assert saved < EPOCHS * STEPS_PER_EPOCH
    continue_and_compare(recipe, tmp_path, finished)


def test_the_images_of_the_page_are_those_that_the_step_sees(recipe: Recipe, monkeypatch: pytest.MonkeyPatch):
    mixing = {"mixup": 0.8, "cutmix": 1.0, "mixup_mode": "elem", "re_prob": 0.5, "batch_size": 16}
    run, seen, compute = prepare(dataclasses.replace(recipe, **mixing)), [], WithComputeDtype.forward

    def forward(self: WithComputeDtype, images: torch.Tensor, **options: Any) -> Any:
        seen.append(images.permute(0, 2, 3, 1))
        return compute(self, images, **options)

    monkeypatch.setattr(WithComputeDtype, "forward", forward)
    for step in range(2):
        batch = next(run.iterator)
        sample = run.sample(run.state, batch)
        run.train_step(run.state, batch)
        torch.testing.assert_close(sample["image"], seen[step][:12], rtol=0, atol=0)
        assert (seen[step] - batch["image"].permute(0, 2, 3, 1)).abs().max() > 0.1  # something was done to them
        assert sample["label"].shape == (12, 4)


def test_a_workdir_holds_one_run_of_one_recipe(finished: tuple[Path, Accuracy], recipe: Recipe):
    with locked(finished[0]), pytest.raises(ValueError, match=r"is in use by process .* choose another --workdir"):
        train(recipe, finished[0])
    with pytest.raises(ValueError, match=r"another recipe \(lr [\d.]+ -> 0.1\): choose another --workdir"):
        train(dataclasses.replace(recipe, lr=0.1), finished[0])


def test_a_finished_run_stays_as_it_is(finished: tuple[Path, Accuracy], recipe: Recipe):
    before = (finished[0] / "metrics.jsonl").read_bytes()
    assert train(recipe, finished[0]) == finished[1]
    assert (finished[0] / "metrics.jsonl").read_bytes() == before


def test_nan_stops_the_run_and_spares_the_checkpoints(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    hot = dataclasses.replace(recipe, lr=1e30, warmup_epochs=2, warmup_lr=0.0, checkpoint_every=1, clip_grad=None)
    with pytest.raises(TrainingDivergedError, match=r"step \d+: .*lower --lr") as error:
        train(hot, tmp_path)
    assert error.value.step > STEPS_PER_EPOCH
    assert ": diverged</title>" in (page := (tmp_path / PAGE_FILE).read_text())
    assert f"step {error.value.step}: " in page
    for value in read_state_dict(tmp_path).values():
        assert value.isfinite().all()

    def diverged(*args: Any, **options: Any) -> None:
        raise error.value

    monkeypatch.setattr(training, "train", diverged)
    assert cli.run(training.main, ["digits", "--workdir", str(tmp_path)]) == 1
    assert f"error: step {error.value.step}: " in capsys.readouterr().err


def test_evaluate_counts_what_training_counted(
    finished: tuple[Path, Accuracy], recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Whatever the batch size; from the run's folder, and from the file of a step."""
    workdir, result = finished
    for path in (workdir, workdir / "checkpoints" / "40.pth"):
        args = ["--checkpoint", str(path), "--data", str(recipe.data), "--json", str(tmp_path / "r.json")]
        assert cli.run(evaluation.main, [*args, "--batch-size", "7", "--per-class"]) == 0
        facts = json.loads((tmp_path / "r.json").read_text())
        assert (facts["images"], facts["top1_correct"], facts["top5_correct"]) == result
        assert sum(one["correct"] for one in facts["classes"]) == result.top1_correct
        shown = capsys.readouterr().out
        assert f"({result.top1_correct} of {VAL_IMAGES})" in shown
        assert "most often confused with" in shown


def test_a_run_starts_from_another(finished: tuple[Path, Accuracy], recipe: Recipe, tmp_path: Path):
    """At learning rate 0 the new run is the old one's average, with its accuracy."""
    still = dataclasses.replace(recipe, epochs=1, cooldown_epochs=0, warmup_lr=0.0, checkpoint_every=1)
    assert train(still, tmp_path, init_from=finished[0]) == finished[1]


def test_other_classes_begin_anew(finished: tuple[Path, Accuracy]):
    report = load_checkpoint(create_model("t2t_vit_micro", img_size=16, in_chans=1, num_classes=7), finished[0])
    assert set(report.left_out) == {"head.weight", "head.bias"}


def test_two_epochs_of_the_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The command as a user types it; the whole recipe reaches 99 %."""
    args = ["digits", "--epochs", "2", "--warmup-epochs", "0", "--workdir", str(tmp_path), "--data-threads", "0"]
    assert cli.run(training.main, args) == 0
    first, *_, last = shown = capsys.readouterr().out.splitlines()
    assert first.startswith("model     t2t_vit_")
    assert sum(line.startswith("step     50/88   loss ") for line in shown) == 1
    assert last.startswith("finished: top-1 ")
    assert last.endswith(f"of 360), weights in {tmp_path}")
    assert float(last.split()[2]) > 50
    assert cli.run(training.main, args) == 0
    said = capsys.readouterr().out.splitlines()
    assert f"the run in {tmp_path} is finished: all 88 steps are done" in said
    assert said[-1] == last


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "the recipe is missing: python -m t2t_torch.train RECIPE; recipes: digits"),
        (["digit"], "did you mean digits?"),
        (["imagenet_t2t_vit_14"], "add --data DIR"),
        (["digits", "--data", "/nowhere"], "no data folder /nowhere"),
        (["digits", "--init-from", "/nowhere"], "no checkpoint file at /nowhere"),
        (["digits", "--num-classes", "7"], "set --num-classes 10"),
        (["digits", "--frozen", "nothing"], "frozen: the model has no parameter 'nothing'"),
        (["digits", "--lr", "inf"], "lr inf is not a number from 0 that is finite in float32"),
        (["digits", "--std", "0"], "std (0.0,) is not positive: pixels are divided by it"),
        (["digits", "--num-classes", "2000000000"], "num_classes 2,000,000,000 is too large"),
    ],
)
def test_mistakes_are_one_line(args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--workdir", str(tmp_path / "run")] if args else []
    assert cli.run(training.main, [*args, *options]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert message in said


def test_a_lack_of_memory_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(training, "build_model", lambda recipe: torch.empty(2**58))
    assert cli.run(training.main, ["digits", "--workdir", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: out of memory (")
    assert said.count("\n") == 1


def test_help_names_this_command(capsys: pytest.CaptureFixture[str]):
    assert training.main(["--help"]) == 0
    with pytest.raises(SystemExit):
        training.main(["digits", "--help"])
    shown = capsys.readouterr().out
    assert "python -m t2t_torch.train digits" in shown
    assert "t2t_jax.train digits" not in shown
