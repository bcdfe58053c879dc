"""The same run by both train commands: from one file, on the same images, step by step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import t2t_jax
import t2t_jax.train
import t2t_jax.training.from_recipe
import t2t_torch
import t2t_torch.train
import t2t_torch.training.from_recipe
import t2t_torch.training.step
from parity.side_by_side.trajectory import distance
from t2t_config import Recipe
from t2t_jax.checkpoint import init_weights
from t2t_jax.state import split_model
from t2t_jax.training.step import make_forward
from t2t_jax.weights.torch_file import to_torch
from tests.support.golden import rel_f
from tests.support.small_data import small_recipe, write_idx_folder

STEPS = 10


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Without draws inside the model (the performer's are hard-wired, so models are made without); with all else."""
    for package in (t2t_torch, t2t_jax):
        create: Any = package.create_model

        def without_dropout(*args: Any, create: Any = create, **arguments: Any) -> Any:
            return create(*args, performer_drop_rate=0.0, depth=1, **arguments)

        monkeypatch.setattr(f"{package.__name__}.training.from_recipe.create_model", without_dropout)
    own = small_recipe(write_idx_folder(tmp_path / "idx"))
    return dataclasses.replace(own, drop_path_rate=0.0, warmup_epochs=0, clip_grad=1.0, backbone_lr_scale=0.5)


@pytest.fixture
def quick_compiling() -> Iterator[None]:
    """Without XLA's optimiser no digit changes that a float64 gate sees, and compiling takes half the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def in_float64(tree: Any) -> Any:
    """JAX's arrays; whole numbers and keys stay as they are."""
    return jax.tree.map(lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def weights_of(state_dict: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in state_dict.items()}


@pytest.mark.usefixtures("quick_compiling")
def test_both_train_commands_make_the_same_run(recipe: Recipe, tmp_path: Path):
    """In float64, which neither command offers: their states are widened before the first step."""
    start = tmp_path / "start.pth"
    t2t_torch.save_checkpoint(
        t2t_torch.training.from_recipe.build_model(dataclasses.replace(recipe, num_classes=4, seed=3)), start
    )
    ours = t2t_torch.train.prepare(recipe, init_from=start)
    ours.state.model.double()
    average = ours.state.ema
    assert average is not None
    average.state = {name: value.double() for name, value in average.state.items()}
    before = weights_of(ours.state.raw)
    with jax.enable_x64(True):
        theirs = t2t_jax.train.prepare(recipe, init_from=start)
        theirs.state = in_float64(theirs.state)
        assert distance(before, to_torch(theirs.state.raw)) == 0
        for _ in range(STEPS):
            batch, other = next(ours.iterator), next(theirs.iterator)
            np.testing.assert_array_equal(batch["image"].permute(0, 2, 3, 1).numpy(), other["image"])
            np.testing.assert_array_equal(batch["label"].numpy(), other["label"])
            _, found = ours.train_step(ours.state, {**batch, "image": batch["image"].double()})
            theirs.state, wanted = theirs.train_step(theirs.state, in_float64(other))
            assert wanted["loss"].dtype == jnp.float64
            for name in ("loss", "grad_norm"):
                assert math.isclose(float(found[name]), float(wanted[name]), rel_tol=1e-13), name
        assert theirs.state.ema is not None
        raw, best = (to_torch(arrays) for arrays in (theirs.state.raw, theirs.state.ema))
    for name, mine, other in (("raw", ours.state.raw, raw), ("average", average.state, best)):
        travelled = distance(weights_of(mine), before)
        assert travelled > 0.1, name
        assert distance(weights_of(mine), other) / travelled <= 1e-10, name


def test_both_compute_alike_in_bfloat16(recipe: Recipe, tmp_path: Path):
    """Every layer of one rounds what the other's rounds: both stray as far from float32, and are as near each other."""
    start = tmp_path / "start.pth"
    t2t_torch.save_checkpoint(
        t2t_torch.training.from_recipe.build_model(dataclasses.replace(recipe, num_classes=4, seed=3)), start
    )
    images = np.random.RandomState(0).standard_normal((64, 16, 16, 1)).astype(np.float32)
    logits = {}
    for dtype in ("float32", "bfloat16"):
        own = dataclasses.replace(recipe, num_classes=4, dtype=dtype)
        model = t2t_torch.training.from_recipe.build_model(own)
        t2t_torch.load_checkpoint(model, start)
        forward = t2t_torch.training.step.make_forward(
            model.eval(), dtype=t2t_torch.training.from_recipe.compute_dtype(dtype)
        )
        logits["torch", dtype] = forward(model.state_dict(), images)
        twin = t2t_jax.training.from_recipe.build_model(own)
        init_weights(twin, start)
        graphdef, params, buffers = split_model(twin)
        logits["jax", dtype] = np.asarray(make_forward(graphdef)({**params, **buffers}, images))
    oracle = logits["torch", "float32"]
    assert rel_f(logits["jax", "float32"], oracle) < 3e-6
    ours, theirs = (rel_f(logits[side, "bfloat16"], oracle) for side in ("torch", "jax"))
    assert 1e-3 < ours < 3e-2
    assert 1 / 2 < ours / theirs < 2
    assert rel_f(logits["torch", "bfloat16"], logits["jax", "bfloat16"]) < 1.5 * max(ours, theirs)
