"""`python -m t2t_jax.predict` and `python -m t2t_torch.predict`: the same predictions, in words; clear errors."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import t2t_jax.predict
import t2t_torch
import t2t_torch.predict
from t2t_common.data.preprocess import Preprocess, evaluation_image
from t2t_common.evaluation.predict_command import predict
from t2t_common.io import cli
from t2t_config.class_names import imagenet_classes
from t2t_config.weights.metadata import describe_model, to_text
from t2t_jax.checkpoint import save_model
from t2t_parity.pair import make_pair
from tests.common.data.test_preprocess import PHOTOGRAPHS

Command = Callable[[Sequence[str]], int]
COMMANDS: dict[str, Command] = {"jax": t2t_jax.predict.main, "torch": t2t_torch.predict.main}
NAMES = ["apple", "bear", "cat", "dog", "elk", "fox", "goat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of one model as an Orbax folder and as PyTorch files, and two photographs."""
    folder = tmp_path_factory.mktemp("predict")
    arguments: dict[str, Any] = {"img_size": (48, 32), "num_classes": len(NAMES), "tokens_type": "convolution"}
    torch_model, jax_model = make_pair("t2t_vit_micro", **arguments)
    metadata = describe_model(torch_model, {"class_names": NAMES, "crop_pct": 0.8})
    save_model(folder / "orbax", jax_model, metadata)
    t2t_torch.save_checkpoint(torch_model, folder / "w.safetensors", metadata=to_text(metadata))
    t2t_torch.save_checkpoint(torch_model, folder / "bare.pth")
    (folder / "photographs").mkdir()
    for name in ("china.jpg", "flower.jpg"):
        shutil.copy(PHOTOGRAPHS / name, folder / "photographs" / name)
    return folder


def run(command: str, *args: str | Path) -> int:
    return cli.run(COMMANDS[command], [str(arg) for arg in args])


def test_both_frameworks_predict_the_same(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    flower, photographs = folder / "photographs" / "flower.jpg", folder / "photographs"
    facts, texts = {}, {}
    for command, weights in (("torch", "w.safetensors"), ("jax", "w.safetensors"), ("jax", "orbax")):
        out = tmp_path / "out.json"
        args = (flower, photographs, "--checkpoint", folder / weights, "--json", out, "--batch-size", "2")
        assert run(command, *args) == cli.OK
        facts[command, weights], texts[command, weights] = json.loads(out.read_text()), capsys.readouterr().out
    reference = facts["torch", "w.safetensors"]["predictions"]
    assert [p["image"] for p in reference] == [str(flower), str(photographs / "china.jpg"), str(flower)]
    assert reference[0] == reference[2]
    assert reference[0]["top"] != reference[1]["top"]
    for prediction in reference:
        assert len(prediction["top"]) == 5
        assert [NAMES[guess["index"]] for guess in prediction["top"]] == [guess["name"] for guess in prediction["top"]]
    for key, other in facts.items():
        assert texts[key] == texts["torch", "w.safetensors"]
        assert other["preprocessing"]["crop_pct"] == 0.8
        for mine, theirs in zip(other["predictions"], reference, strict=True):
            assert mine["image"] == theirs["image"]
            assert [g["name"] for g in mine["top"]] == [g["name"] for g in theirs["top"]]
            ours, others = ([g["probability"] for g in p["top"]] for p in (mine, theirs))
            np.testing.assert_allclose(ours, others, rtol=1e-5)


def test_the_figures_are_the_softmax_of_the_model(folder: Path, capsys: pytest.CaptureFixture[str]):
    model: Any = t2t_torch.create_model("t2t_vit_micro", img_size=(48, 32), num_classes=7, tokens_type="convolution")
    t2t_torch.load_checkpoint(model.eval(), folder / "bare.pth")
    photograph = folder / "photographs" / "china.jpg"
    how = Preprocess((48, 32), 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.8, "bicubic")
    image = torch.from_numpy(evaluation_image(Image.open(photograph), how).transpose(2, 0, 1))
    with torch.no_grad():
        best = model(image[None]).softmax(-1)[0].sort(descending=True)
    lines = [f"  {100 * p:6.2f} %  {NAMES[i]}" for p, i in zip(best.values[:2], best.indices[:2], strict=True)]
    for command in COMMANDS:
        assert run(command, photograph, "--checkpoint", folder / "w.safetensors", "--top", "2") == cli.OK
        assert capsys.readouterr().out.splitlines() == [str(photograph), *lines]


def test_images_are_batched_in_order():
    paths = [PHOTOGRAPHS / name for name in ("china.jpg", "flower.jpg", "china.jpg", "china.jpg", "flower.jpg")]
    how = Preprocess(8, 3, (0.0,) * 3, (1.0,) * 3, 1.0, "bilinear")
    shapes = []

    def mean_colour(images: np.ndarray) -> np.ndarray:
        shapes.append(images.shape)
        return images.mean((1, 2)) * 20

    found = {
        size: list(predict(paths, how, mean_colour, ["red", "green", "blue"], top=2, batch_size=size))
        for size in (1, 2, 16)
    }
    assert shapes == [(1, 8, 8, 3)] * 5 + [(2, 8, 8, 3)] * 3 + [(5, 8, 8, 3)]
    for size in (1, 2):
        assert [p.image for p in found[size]] == paths
        for mine, theirs in zip(found[size], found[16], strict=True):
            assert [g.name for g in mine.guesses] == [g.name for g in theirs.guesses]
            assert [g.probability for g in mine.guesses] == pytest.approx([g.probability for g in theirs.guesses])


@pytest.mark.parametrize("command", COMMANDS)
def test_names_of_the_classes(
    command: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """A file wins over the checkpoint; a bare file has numbers; a head of 1000 classes is ImageNet's."""
    photograph, names = folder / "photographs" / "china.jpg", tmp_path / "names.txt"
    names.write_text("\n".join(name.upper() for name in NAMES))
    assert run(command, photograph, "--checkpoint", folder / "w.safetensors", "--classes", names) == cli.OK
    assert {line.split()[-1].lower() for line in capsys.readouterr().out.splitlines()[1:]} < set(NAMES)

    names.write_text("one\ntwo")
    assert run(command, photograph, "--checkpoint", folder / "w.safetensors", "--classes", names) == cli.MISUSED
    assert "holds 2 class names, the model has 7" in capsys.readouterr().err

    model = t2t_torch.create_model("vit_deit_tiny_patch16_224", img_size=32)
    t2t_torch.save_checkpoint(model, tmp_path / "w.pth")
    args = (photograph, "--checkpoint", tmp_path / "w.pth", "--model", "deit_tiny_patch16_224")
    assert run(command, *args) == cli.OK
    words = [line.split("%  ")[1] for line in capsys.readouterr().out.splitlines()[1:]]
    assert len(words) == 5
    assert set(words) <= set(imagenet_classes().values())


@pytest.mark.parametrize("command", COMMANDS)
def test_what_cannot_be_understood(command: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    photograph, weights = folder / "photographs" / "china.jpg", folder / "w.safetensors"
    (tmp_path / "notes.jpg").write_text("no image")
    headless = t2t_torch.create_model("t2t_vit_micro", img_size=32, num_classes=0, tokens_type="convolution")
    described = to_text(describe_model(headless))
    t2t_torch.save_checkpoint(headless, tmp_path / "headless.safetensors", metadata=described)
    for args, message in (
        ((photograph,), "weights are required: add --checkpoint"),
        ((photograph, "--checkpoint", folder / "bare.pth"), "does not name its model: add --model"),
        ((photograph, "--checkpoint", weights, "--model", "t2t_vit_m"), "did you mean t2t_vit_"),
        ((photograph, "--checkpoint", tmp_path / "none.pth"), "none.pth"),
        ((tmp_path / "notes.jpg", "--checkpoint", weights), "unreadable image"),
        ((tmp_path / "none.jpg", "--checkpoint", weights), "no image or folder at"),
        ((tmp_path, "--checkpoint", tmp_path / "headless.safetensors"), "has no classifier"),
        (("--checkpoint", weights), "name files or folders"),
        ((photograph, "--checkpoint", weights, "--top", "0"), "top is 0: give at least 1"),
        ((photograph, "--checkpoint", weights, "--json", tmp_path / "none" / "out.json"), "create the folder"),
        ((photograph, "--nonsense"), "nonsense"),
    ):
        assert run(command, *args) == cli.MISUSED, args
        error = capsys.readouterr().err
        assert message in error, args
        assert error.count("\n") == 1, args


@pytest.mark.parametrize("module", ["t2t_jax.predict", "t2t_torch.predict"])
def test_help_and_exit_codes_of_the_process(module: str):
    process = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True)
    assert process.returncode == 0
    assert "--checkpoint" in process.stdout
    process = subprocess.run([sys.executable, "-m", module, "x.jpg"], capture_output=True, text=True)
    assert process.returncode == 2
    assert process.stderr.startswith("error: weights are required")
