"""Photographs of real things as a small data set: what `own` is tried on, in both packages."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2t_common.io import cli
from tools import photographs


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "photos"
    assert cli.run(photographs.main, [str(folder)]) == cli.OK
    return folder


def test_tiles_are_parts_of_the_photographs(tiles: Path, capsys: pytest.CaptureFixture[str]):
    image = photographs.photographs()["coffee"]
    np.testing.assert_array_equal(Image.open(tiles / "coffee" / "2-3.png"), image[128:192, 192:256])
    assert {path.name: len(list(path.iterdir())) for path in tiles.iterdir()} == {
        name: (image.shape[0] // 64) * (image.shape[1] // 64) for name, image in photographs.photographs().items()
    }
    assert cli.run(photographs.main, [str(tiles)]) == cli.MISUSED
    assert capsys.readouterr().err == f"error: {tiles} exists: name a new folder\n"


@pytest.mark.parametrize("package", ["t2t_jax", "t2t_torch"])
def test_a_small_model_learns_them(package: str, tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The command of docs/own_data.md with a smaller model, for less time. Chance is 14 of 59."""
    train = importlib.import_module(f"{package}.train")
    workdir = tmp_path / "run"
    options = ["--model=t2t_vit_micro", "--img-size=16", "--epochs=15", f"--workdir={workdir}"]
    for printed in ("chosen for 267 training images, from random weights: --batch-size 32, --warmup", "is finished"):
        assert cli.run(train.main, ["own", f"--data={tiles}", *options]) == cli.OK, capsys.readouterr().err
        assert printed in capsys.readouterr().out
    recipe = json.loads((workdir / "run.json").read_text())["config"]["recipe"]
    assert (recipe["epochs"], recipe["num_classes"], recipe["val_fraction"], recipe["eval_every"]) == (15, 6, 0.2, 1)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    (*_, top1) = (line["top1"] for line in lines if "top1" in line)
    assert top1 > 33


def test_data_that_are_split_are_not_split_again(tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """And weights that the run starts from change what is chosen."""
    for split, names in (("train", ("cat", "china")), ("val", ("cat",))):
        for name in names:
            (tmp_path / "data" / split).mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / split / name).symlink_to(tiles / name)
    train = importlib.import_module("t2t_torch.train")
    options = [f"--data={tmp_path / 'data'}", "--model=t2t_vit_micro", "--img-size=16", "--epochs=1"]
    assert cli.run(train.main, ["own", *options, f"--workdir={tmp_path / 'a'}"]) == cli.OK, capsys.readouterr().err
    weights = [f"--init-from={tmp_path / 'a'}", f"--workdir={tmp_path / 'b'}"]
    assert cli.run(train.main, ["own", *options, *weights]) == cli.OK, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "88 training images, from the given weights" in printed
    assert "--layer-decay 0.75" in printed
    resumed = ["own", *options, f"--workdir={tmp_path / 'b'}"]  # without the weights
    assert cli.run(train.main, resumed) == cli.MISUSED
    assert "layer_decay 0.75 -> 1.0" in capsys.readouterr().err
    assert "of 28)" in printed  # all images of val/cat are evaluated
