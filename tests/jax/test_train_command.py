"""The command of training: its options, its exit codes, mistakes in one line."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from t2t_common.io import cli
from t2t_common.workdir.interrupt import RunInterruptedError
from t2t_config import Recipe
from t2t_jax import train as training
from t2t_jax.checkpoint import CHECKPOINTS


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "the recipe is missing"),
        (["digts"], "did you mean digits"),
        (["digits", "--lrr", "1"], "--lr"),
        (["digits", "--dtype", "float16"], "float16"),
        (["digits", "--batch-size", "0"], "batch_size 0 is not a whole number from 1"),
        (["imagenet_t2t_vit_7"], "add --data DIR"),
        (["imagenet_t2t_vit_7", "--auto-augment", "rand-x1"], "auto_augment 'x1' of 'rand-x1' is unknown"),
        (["imagenet_t2t_vit_7", "--batch-size", "7"], "batch_size must be even"),
        (["digits", "--data", "/no/such/folder"], "/no/such/folder"),
        (["digits", "--batch-size", "5000"], "batch_size 5000 exceeds the 1437 training images"),
        (["digits", "--num-classes", "3"], "--num-classes 10"),
        (["digits", "--init-from", "/no/such/file.pth"], "no checkpoint at /no/such/file.pth"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    args: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    assert cli.run(training.main, args) == 2
    complaint = capsys.readouterr().err
    assert message in complaint
    assert complaint.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_diverging_is_exit_code_1(recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = ["--data", str(recipe.data), "--img-size", "16", "--model", "t2t_vit_micro", "--num-classes", "10"]
    args = [*data, "--lr", "1e30", "--warmup-epochs", "0", "--batch-size", "16", "--workdir", str(tmp_path)]
    assert cli.run(training.main, ["digits", *args]) == 1
    assert "lower --lr" in capsys.readouterr().err
    assert not any((tmp_path / CHECKPOINTS).iterdir())


def test_being_interrupted_is_one_line_and_exit_code_0(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def stop(*args: object, **kwargs: object) -> None:
        raise RunInterruptedError("stopped by SIGTERM, saved")

    monkeypatch.setattr(training, "train", stop)
    assert cli.run(training.main, ["digits"]) == 0
    assert capsys.readouterr().out == "stopped by SIGTERM, saved\n"


def test_every_field_is_an_option():
    done = subprocess.run(
        [sys.executable, "-m", "t2t_jax.train", "digits", "--help"], capture_output=True, text=True, check=True
    )
    for field in dataclasses.fields(Recipe):
        assert f"--{field.name.replace('_', '-')}" in done.stdout
    assert "99 %" in done.stdout
    assert "--init-from" in done.stdout
