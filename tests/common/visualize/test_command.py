"""`python -m t2t_jax.visualize` and `python -m t2t_torch.visualize`: the same files from one checkpoint; errors."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import t2t_jax.visualize
import t2t_torch
import t2t_torch.visualize
from t2t_common.data.preprocess import Preprocess, evaluation_image
from t2t_common.io import cli
from t2t_common.visualize import command
from t2t_common.visualize.command import distinct_names, restore, sample_image
from t2t_config.weights.metadata import describe_model, to_text
from t2t_jax.checkpoint import save_model
from t2t_parity.pair import make_pair
from tests.common.data.test_preprocess import PHOTOGRAPHS

Command = Callable[[Sequence[str]], int]
COMMANDS: dict[str, Command] = {"jax": t2t_jax.visualize.main, "torch": t2t_torch.visualize.main}
NAMES = ["apple", "bear", "cat", "dog", "elk", "fox", "goat"]
SECTIONS = ("rollout", "attention", "heads", "soft_splits")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of one model as an Orbax folder and as a PyTorch file, and two photographs."""
    folder = tmp_path_factory.mktemp("visualize")
    torch_model, jax_model = make_pair("t2t_vit_micro", img_size=(48, 32), num_classes=len(NAMES))
    metadata = describe_model(torch_model, {"class_names": NAMES, "crop_pct": 0.8})
    save_model(folder / "orbax", jax_model, metadata)
    t2t_torch.save_checkpoint(torch_model, folder / "w.safetensors", metadata=to_text(metadata))
    (folder / "photographs").mkdir()
    for name in ("china.jpg", "flower.jpg"):
        shutil.copy(PHOTOGRAPHS / name, folder / "photographs" / name)
    return folder


def run(command: str, *args: str | Path) -> int:
    return cli.run(COMMANDS[command], [str(arg) for arg in args])


def test_both_frameworks_draw_the_same(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name, weights in (("torch", "w.safetensors"), ("jax", "orbax")):
        out = tmp_path / name
        assert run(name, folder / "photographs", "--checkpoint", folder / weights, "--out", out) == cli.OK
        files = [f"{photo}-{section}.png" for photo in ("china", "flower") for section in SECTIONS]
        files += ["positions.png", "index.html"]
        assert capsys.readouterr().out.splitlines() == [str(out / file) for file in files]
        assert sorted(path.name for path in out.iterdir()) == sorted(files)
    for path in (tmp_path / "torch").glob("*.png"):
        ours, theirs = (np.asarray(Image.open(tmp_path / name / path.name), int) for name in COMMANDS)
        assert np.abs(ours - theirs).max() <= 2, path.name
        assert (ours != theirs).any(axis=-1).mean() < 0.02, path.name
    ours, theirs = ((tmp_path / name / "index.html").read_text() for name in COMMANDS)
    assert len(ours) == pytest.approx(len(theirs), rel=0.02)
    assert "Image of 48×32 pixels, 3×2 tokens, 2 blocks of 2 heads." in ours
    assert ours.count("<li>") == 2 * command.SAID
    assert any(name in ours for name in NAMES)


@pytest.mark.parametrize("name", COMMANDS)
def test_fresh_weights_and_the_default_image(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Of a model without soft splits: they are left out, and the page says so."""
    args = ("--model", "deit_tiny_distilled_patch16_224", "--img-size", "32", "--out", tmp_path / "new" / "out")
    assert run(name, *args) == cli.OK
    assert "flower-rollout.png" in capsys.readouterr().out
    text = (tmp_path / "new" / "out" / "index.html").read_text()
    for words in ("fresh, not trained", "no soft splits", "flower.jpg", "distillation token"):
        assert words in text
    assert "<li>" not in text  # guesses of fresh weights are none
    assert not list((tmp_path / "new" / "out").glob("*soft_splits*"))


@pytest.mark.parametrize("name", COMMANDS)
def test_what_cannot_be_understood(name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    photograph, weights = folder / "photographs" / "china.jpg", folder / "w.safetensors"
    (tmp_path / "notes.jpg").write_text("no image")
    broken: Any = t2t_torch.create_model("t2t_vit_micro", img_size=32)
    broken.blocks[1].attn.qkv.weight.data.fill_(float("nan"))
    metadata = to_text(describe_model(broken))
    t2t_torch.save_checkpoint(broken, tmp_path / "broken.safetensors", metadata=metadata)
    out = ("--out", tmp_path / "out")
    for args, message in (
        ((photograph,), "add --checkpoint PATH, or --model NAME for fresh weights"),
        ((photograph, "--model", "t2t_vit_m"), "did you mean t2t_vit_"),
        ((photograph, "--checkpoint", tmp_path / "none.pth"), "none.pth"),
        ((tmp_path / "notes.jpg", "--checkpoint", weights), "unreadable image"),
        ((tmp_path / "none.jpg", "--checkpoint", weights), "no image or folder at"),
        ((photograph, "--checkpoint", tmp_path / "broken.safetensors"), "not finite in this model: check its weights"),
        ((photograph, "--checkpoint", weights, "--out", photograph), "choose another folder"),
        ((photograph, "--nonsense"), "nonsense"),
    ):
        assert run(name, *(args if "--out" in args else (*args, *out))) == cli.MISUSED, args
        error = capsys.readouterr().err
        assert message in error, args
        lines = error.splitlines()
        assert [line for line in lines if not line.startswith("warning: ")] == lines[-1:], args


def test_without_scikit_learn_an_image_has_to_be_named(monkeypatch: pytest.MonkeyPatch):
    assert sample_image() == PHOTOGRAPHS / "flower.jpg"
    assert sample_image().is_file()
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="name one, or pip install scikit-learn"):
        sample_image()


def test_no_image_takes_anothers_name():
    paths = [Path(name) for name in ("a/x.jpg", "b/x.png", "y.jpg", "x.jpg")]
    assert distinct_names(paths) == ["x", "x-2", "y", "x-3"]
    tricky = [Path(name) for name in ("x-2.jpg", "a/x.jpg", "b/x.jpg")]
    assert distinct_names(tricky) == ["x-2", "x", "x-3"]


@pytest.mark.parametrize("in_chans", [1, 3])
def test_what_the_model_saw_is_the_image_again(in_chans: int):
    how = Preprocess((40, 60), in_chans, (0.4,) * in_chans, (0.2,) * in_chans, 1.0, "bilinear")
    photograph = Image.open(PHOTOGRAPHS / "flower.jpg").crop((100, 100, 160, 140))
    wanted = photograph.convert("L" if in_chans == 1 else "RGB")
    assert np.array_equal(np.asarray(restore(evaluation_image(photograph, how), how)), np.asarray(wanted))
