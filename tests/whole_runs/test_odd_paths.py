"""Folders and files whose names mean something to shells, patterns and formats: saved, resumed, evaluated."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t2t_common.io import cli
from t2t_config import Recipe
from t2t_jax.checkpoint import load_metadata, load_model_state, save_model
from t2t_jax.weights.orbax_paths import is_plain

NAMES = (
    "try[1]",
    "[!a]",
    "a*b",
    "**",
    "a?b",
    "{a,b}",
    "100%",
    "%20 %s %d",
    "two words",
    "-dash",
    "--workdir",
    "ä中é",
    "a\\b",
    "a'b\"c",
    "$HOME ~",
    "gs:",
    "a\nb",
    os.fsdecode(b"\xff"),
)
ALL = "-try[1] *?{a,b} 100%d ä中\\"


@pytest.mark.parametrize("name", NAMES)
def test_orbax_folders_of_any_name(name: str, tmp_path: Path):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.ones(3, np.float32)}
    for path in (tmp_path / name, tmp_path / name / "inside"):
        path.parent.mkdir(exist_ok=True)
        for number in (1, 2):  # the second takes the place of the first
            save_model(path, {**arrays, "b": arrays["b"] * number}, {"number": number})
        found = load_model_state(path)
        assert found.verified == "sha256"
        assert found.metadata == load_metadata(path) == {"number": 2}
        np.testing.assert_array_equal(found.arrays["a"], arrays["a"])
        np.testing.assert_array_equal(found.arrays["b"], arrays["b"] * 2)
        path.rename(tmp_path / "moved")
        np.testing.assert_array_equal(load_model_state(tmp_path / "moved").arrays["a"], arrays["a"])
        (tmp_path / "moved").rename(tmp_path / f"moved{len(str(path))}")


def test_where_another_name_is_needed():
    assert is_plain(Path("/a/b c/{d}%20-é"))
    assert not any(is_plain(Path(name)) for name in ("/a[1]/b", "/a*", "/a?", "/a\\b", "/gs:/b", "gs:"))


@pytest.mark.parametrize("package", ["t2t_torch", "t2t_jax"])
def test_a_run_of_any_name(
    package: str, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """And the commands that read it, by names that begin with a dash."""

    def module(name: str) -> Any:
        return importlib.import_module(f"{package}.{name}")

    monkeypatch.chdir(tmp_path)
    recipe = dataclasses.replace(recipe, epochs=1, cooldown_epochs=0)
    first = module("train").train(recipe, Path(ALL))
    assert module("train").train(recipe, Path(ALL)) == first  # resumed after its last step
    assert f"{ALL} is finished: all 8 steps are done" in capsys.readouterr().out
    assert (tmp_path / ALL / "report.html").is_file()
    evaluate = [f"--checkpoint={ALL}", "--data", str(recipe.data), f"--json={ALL}.json"]
    assert cli.run(module("evaluate").main, evaluate) == cli.OK, capsys.readouterr().err
    assert json.loads((tmp_path / f"{ALL}.json").read_text())["images"] == first.images
    name = f"{ALL}.pt2"
    assert cli.run(module("export").main, [f"./{name}", f"--checkpoint={ALL}"]) == cli.OK, capsys.readouterr().err
    assert module("export").load_exported(name).verified == "sha256"
