"""The weights of a run in PyTorch, read by JAX."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from t2t_common.evaluation.evaluate_command import EvaluateOptions
from t2t_config import Recipe
from t2t_jax import create_model
from t2t_jax import evaluate as jax_evaluation
from t2t_jax.checkpoint import init_weights, load_model_state
from t2t_jax.state import model_arrays
from t2t_jax.weights.torch_file import to_torch
from t2t_parity.weight_files import convert
from t2t_torch import evaluate as evaluation
from t2t_torch import read_state_dict
from t2t_torch.train import train
from tests.support.small_data import small_recipe, write_idx_folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    own = small_recipe(write_idx_folder(tmp_path_factory.mktemp("idx")))
    return dataclasses.replace(own, epochs=2, cooldown_epochs=0, warmup_epochs=0)


@pytest.fixture(scope="module")
def workdir(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(recipe, folder)
    return folder


def test_both_evaluations_count_the_same(workdir: Path, recipe: Recipe):
    """Neither is told the model, its sizes or how its images are prepared: the file says it."""
    ours, theirs, again = (
        one.evaluate(EvaluateOptions(checkpoint=path, data=str(recipe.data)))
        for one, path in (
            (evaluation, workdir),
            (jax_evaluation, workdir),
            (jax_evaluation, workdir / "checkpoints" / "16.pth"),
        )
    )
    assert ours == theirs == again
    assert ours.accuracy.top1_correct > 0


def test_a_run_in_jax_starts_from_them(workdir: Path):
    model = create_model("t2t_vit_micro", img_size=16, in_chans=1, num_classes=4)
    report = init_weights(model, workdir / "checkpoints" / "best.pth")
    assert report.is_ema
    wanted = read_state_dict(workdir / "checkpoints" / "best.pth")
    for name, array in to_torch(model_arrays(model)).items():
        np.testing.assert_array_equal(array, wanted[name].numpy())


def test_convert_carries_them(workdir: Path, tmp_path: Path):
    convert(workdir, tmp_path / "orbax", "t2t_vit_micro")
    carried, wanted = load_model_state(tmp_path / "orbax"), read_state_dict(workdir)
    assert (carried.metadata["model"], carried.metadata["mean"]) == ("t2t_vit_micro", [0.4])
    for name, array in to_torch(carried.arrays).items():
        np.testing.assert_array_equal(array, wanted[name].numpy())
