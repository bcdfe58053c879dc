"""Evaluation counts every image once, and gives PyTorch's answer for each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import t2t_torch.evaluate
from t2t_common.data import open_source
from t2t_common.evaluation.accuracy import predict, top_classes
from t2t_common.evaluation.evaluate_command import EvaluateOptions
from t2t_common.io import cli
from t2t_jax import create_model
from t2t_jax import evaluate as evaluation
from t2t_jax.checkpoint import save_model
from t2t_jax.data import eval_batches
from t2t_jax.evaluate import evaluate, load_for_evaluation
from t2t_jax.state import load_arrays, model_arrays, split_model
from t2t_jax.training.step import make_forward
from t2t_parity.weight_files import convert
from tests.support.small_data import VAL_IMAGES

METADATA = {"model": "t2t_vit_micro", "img_size": 16, "in_chans": 1, "num_classes": 4, "mean": [0.4], "std": [0.2]}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, large enough that guesses differ from image to image."""
    model = create_model("t2t_vit_micro", img_size=16, in_chans=1, num_classes=4)
    draws = np.random.RandomState(0)
    arrays = {name: array + 0.1 * draws.standard_normal(array.shape) for name, array in model_arrays(model).items()}
    load_arrays(model, arrays)
    folder = tmp_path_factory.mktemp("weights") / "model"
    save_model(folder, model, {**METADATA, "class_names": ["upper left", "upper right", "lower left", "lower right"]})
    return folder


@pytest.mark.parametrize("batch_size", [7, 64])
def test_every_image_gets_pytorchs_logits(checkpoint: Path, idx_folder: Path, batch_size: int, tmp_path: Path):
    """Whatever the batch: the padding of the last one changes nothing."""
    model, how, _ = load_for_evaluation(EvaluateOptions(checkpoint=checkpoint, data=str(idx_folder)))
    batches = list(eval_batches(open_source(str(idx_folder), "val"), how, batch_size))
    ours = predict(make_forward(split_model(model)[0]), model_arrays(model), batches)
    convert(checkpoint, tmp_path / "m.pth", "t2t_vit_micro")
    options = EvaluateOptions(checkpoint=tmp_path / "m.pth", data="", model="t2t_vit_micro", mean=(0.4,), std=(0.2,))
    twin, their_how, _ = t2t_torch.evaluate.load_for_evaluation(options)
    assert their_how == how
    images = np.concatenate([batch["image"][np.asarray(batch["mask"])] for batch in batches])
    with torch.inference_mode():
        theirs = twin(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    assert ours.logits.shape == theirs.shape == (VAL_IMAGES, 4)
    error = np.linalg.norm(ours.logits - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
    assert error.max() < 3e-6
    np.testing.assert_array_equal(top_classes(ours.logits, 1)[:, 0], theirs.argmax(axis=1))
    result = evaluate(EvaluateOptions(checkpoint=checkpoint, data=str(idx_folder), batch_size=batch_size))
    assert result.accuracy.images == VAL_IMAGES
    assert result.accuracy.top1_correct == (theirs.argmax(axis=1) == ours.labels).sum()


def test_every_class(checkpoint: Path, idx_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    args = ["--checkpoint", str(checkpoint), "--data", str(idx_folder), "--batch-size", "8"]
    assert cli.run(evaluation.main, [*args, "--json", str(tmp_path / "r.json")]) == 0
    assert "most often confused with" not in capsys.readouterr().out
    facts = json.loads((tmp_path / "r.json").read_text())
    classes: list[dict[str, Any]] = facts["classes"]
    assert {one["name"] for one in classes} == {"upper left", "upper right", "lower left", "lower right"}
    assert sum(one["images"] for one in classes) == facts["images"] == VAL_IMAGES
    assert sum(one["correct"] for one in classes) == facts["top1_correct"]
    assert [one["accuracy"] for one in classes] == sorted(one["accuracy"] for one in classes)
    for one in classes:
        assert one["images"] == one["correct"] + sum(other["images"] for other in one["mistaken_for"])
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\nd\n")
    assert cli.run(evaluation.main, [*args, "--per-class", "--classes", str(names)]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[:3] == ["top-1", "images", "class"]
    assert {line.split()[3] for line in table[1:5]} == {"a", "b", "c", "d"}


def test_wrong_class_names_are_refused(checkpoint: Path, idx_folder: Path, tmp_path: Path):
    names = tmp_path / "names.txt"
    names.write_text("a\nb\n")
    with pytest.raises(ValueError, match="holds 2 class names, the model has 4"):
        evaluate(EvaluateOptions(checkpoint=checkpoint, data=str(idx_folder), classes=names))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "--checkpoint"),
        (["--checkpoint", "/no/such/run", "--data", "digits"], "no checkpoint at /no/such/run"),
        (["--checkpoint", __file__, "--data", "digits"], "not a PyTorch file"),
        (["--checkpoint", "RUN", "--data", "digits"], "the data has 10 classes, the model 4"),
        (["--checkpoint", "RUN", "--data", "digits", "--model", "t2t_vit_micr"], "did you mean t2t_vit_micro"),
        (["--checkpoint", "RUN", "--data", "digits", "--model", "t2t_vit_tiny"], "belong to another model"),
        (["--checkpoint", "RUN", "--data", "digits", "--in-chans", "3"], "one figure for each of 3 channels"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    args: list[str], message: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
):
    args = [str(checkpoint) if arg == "RUN" else arg for arg in args]
    assert cli.run(evaluation.main, args) == 2
    complaint = capsys.readouterr().err
    assert message in complaint
    assert complaint.count("\n") == 1
