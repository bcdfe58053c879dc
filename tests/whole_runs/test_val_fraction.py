"""A run on a single folder of class folders: split once for training and evaluation, in both packages."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from t2t_common.io import cli
from t2t_config import Recipe

FRACTION = 0.3


def photographs(folder: Path) -> Path:
    """Twenty images of each of two classes, of which one is brighter."""
    for label, name in enumerate(("dark", "light")):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            pixels = np.random.RandomState(number).randint(0, 100, (8, 8)) + 120 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


@pytest.mark.parametrize("package", ["t2t_torch", "t2t_jax"])
def test_one_folder(package: str, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def module(name: str) -> Any:
        return importlib.import_module(f"{package}.{name}")

    data, workdir = photographs(tmp_path / "photographs"), tmp_path / "run"
    recipe = dataclasses.replace(recipe, data=str(data), epochs=1, cooldown_epochs=0, val_fraction=FRACTION)
    trained = module("train").train(recipe, workdir)
    assert 0 < trained.images < 40
    assert f"{trained.images} of 40 images are for validation" in capsys.readouterr().out
    assert json.loads((workdir / "run.json").read_text())["config"]["recipe"]["val_fraction"] == FRACTION
    for more, images in ((), trained.images), (("--val-fraction", "0"), 40):
        results = tmp_path / "results.json"
        args = [f"--checkpoint={workdir}", f"--data={data}", f"--json={results}", *more]
        assert cli.run(module("evaluate").main, args) == cli.OK, capsys.readouterr().err
        found = json.loads(results.read_text())
        assert found["images"] == images
        assert more or found["top1"] == pytest.approx(trained.top1)
    with pytest.raises(ValueError, match=r"another recipe \(val_fraction 0.3 -> 0.5\)"):
        module("train").train(dataclasses.replace(recipe, val_fraction=0.5), workdir)
    Image.new("L", (8, 8)).save(data / "dark" / "new.png")
    with pytest.raises(ValueError, match=r"holds a run on other data \(.*dark \d+ -> \d+"):
        module("train").train(recipe, workdir)
