"""The same run by both train commands: from one file, on the same images, step by step."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import t2t_jax
import t2t_jax.build
import t2t_jax.train
import t2t_torch
import t2t_torch.build
import t2t_torch.train
from parity.trajectory import distance
from t2t_config import Recipe
from t2t_jax.torch_file import to_torch
from tests.small_data import small_recipe, write_idx_folder

STEPS = 10


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Without draws inside the model (the performer's are hard-wired, so models are made without); with all else."""
    for package in (t2t_torch, t2t_jax):
        create: Any = package.create_model

        def without_dropout(*args: Any, create: Any = create, **arguments: Any) -> Any:
            return create(*args, performer_drop_rate=0.0, depth=1, **arguments)

        monkeypatch.setattr(f"{package.__name__}.build.create_model", without_dropout)
    own = small_recipe(write_idx_folder(tmp_path / "idx"))
    return dataclasses.replace(
        own, drop_path_rate=0.0, warmup_epochs=0, clip_grad=1.0, grad_accum_steps=2, backbone_lr_scale=0.5
    )


def in_float64(tree: Any) -> Any:
    """JAX's arrays; whole numbers and keys stay as they are."""
    return jax.tree.map(lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def weights_of(state_dict: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in state_dict.items()}


def test_both_train_commands_make_the_same_run(recipe: Recipe, tmp_path: Path):
    """In float64, which neither command offers: their states are widened before the first step."""
    start = tmp_path / "start.pth"
    t2t_torch.save_checkpoint(t2t_torch.build.build_model(dataclasses.replace(recipe, num_classes=4, seed=3)), start)
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
            found = ours.train_step(ours.state, {**batch, "image": batch["image"].double()})
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
