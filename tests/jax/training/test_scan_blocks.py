"""Training with stacked blocks: the run of the list of blocks, and files that everything else reads."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from t2t_common.evaluation.evaluate_command import EvaluateOptions
from t2t_common.run.loop import Run
from t2t_config import Recipe
from t2t_jax import create_model
from t2t_jax.checkpoint import load_metadata, load_model_state, load_weights, save_model
from t2t_jax.evaluate import evaluate
from t2t_jax.models.scan_blocks import is_stacked, unstack_arrays
from t2t_jax.state import model_arrays
from t2t_jax.train import prepare, train
from t2t_jax.training.reporter import Reporter
from t2t_jax.weights.torch_file import to_torch
from t2t_parity.weight_files import convert
from t2t_torch import read_state_dict

STEPS = 20
DROPS = {"drop_rate": 0.1, "attn_drop_rate": 0.1, "drop_path_rate": 0.3}


def stacked(recipe: Recipe, **changes: object) -> Recipe:
    return dataclasses.replace(recipe, scan_blocks=True, **changes)


def losses(run: Run) -> list[float]:
    found = []
    for _ in range(STEPS):
        run.state, metrics = run.train_step(run.state, next(run.iterator))
        found.append(float(metrics["loss"]))
    return found


def test_twenty_steps_are_those_of_the_list(recipe: Recipe):
    """With all dropouts, weight decay, clipping and an average; rematerialised too."""
    runs = [
        prepare(dataclasses.replace(recipe, **DROPS, scan_blocks=scan, remat=remat))
        for scan, remat in ((False, False), (True, False), (True, True))
    ]
    assert all(map(is_stacked, (name for name in runs[1].state.params if name.startswith("blocks."))))
    unrolled, *scanned = map(losses, runs)
    assert len(set(unrolled)) == STEPS
    for found, run in zip(scanned, runs[1:], strict=True):
        np.testing.assert_allclose(found, unrolled, rtol=2e-6)
        for name, array in runs[0].state.best.items():
            np.testing.assert_allclose(unstack_arrays(run.state.best)[name], array, rtol=1e-3, atol=1e-4, err_msg=name)


def stop_at(at_step: int):
    original = Reporter.step

    def step(self: Reporter, step: int, *args: object, **kwargs: object) -> None:
        original(self, step, *args, **kwargs)
        if step == at_step:
            raise KeyboardInterrupt

    return step


def test_its_checkpoints_continue_and_are_read_by_all_commands(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = stacked(recipe, epochs=2, drop_path_rate=0.3, checkpoint_every=1)
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    result = train(recipe, whole)
    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "step", stop_at(13))
        with pytest.raises(KeyboardInterrupt):
            train(recipe, parted)
    assert train(recipe, parted) == result  # bit for bit, from the checkpoint of step 8
    for ema in (True, False):
        here, there = (load_model_state(folder, use_ema=ema).arrays for folder in (parted, whole))
        chex.assert_trees_all_equal(here, there)
    with pytest.raises(ValueError, match=r"another recipe.*scan_blocks True -> False"):
        train(dataclasses.replace(recipe, scan_blocks=False), whole)

    # evaluate, --init-from, parity convert
    options = EvaluateOptions(checkpoint=whole, data=str(recipe.data))
    assert evaluate(options).accuracy == result
    for scan in (False, True):
        run = prepare(dataclasses.replace(recipe, scan_blocks=scan), init_from=whole)
        chex.assert_trees_all_equal(unstack_arrays(run.state.raw), dict(load_model_state(whole).arrays))
    convert(whole, tmp_path / "m.pth", "t2t_vit_micro")
    expected = to_torch(load_model_state(whole).arrays)
    found = read_state_dict(tmp_path / "m.pth")
    assert found.keys() == expected.keys()
    assert all(np.array_equal(value.numpy(), expected[name]) for name, value in found.items())
    assert "scan_blocks" not in load_metadata(tmp_path / "m.pth").get("overrides", {})


def test_files_hold_the_blocks_one_by_one(tmp_path: Path):
    sizes = {"img_size": 16, "in_chans": 1, "num_classes": 3}
    unrolled, scanned = (create_model("t2t_vit_micro", **sizes, scan_blocks=scan) for scan in (False, True))
    save_model(tmp_path / "m", scanned)
    assert not any(map(is_stacked, load_model_state(tmp_path / "m").arrays))
    draws = np.random.RandomState(0)
    arrays = {name: draws.standard_normal(x.shape).astype(x.dtype) for name, x in model_arrays(unrolled).items()}
    save_model(tmp_path / "n", arrays)
    for model in (unrolled, scanned):
        report = load_weights(model, tmp_path / "n")
        assert set(report.loaded) == set(arrays)
        chex.assert_trees_all_equal(jax.device_get(model_arrays(model)), arrays)
