"""Training with token labels: what a step computes, whole runs, several devices."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from t2t_common.evaluation.evaluate_command import EvaluateOptions
from t2t_common.io import cli
from t2t_config import Recipe
from t2t_jax import train as training
from t2t_jax.evaluate import load_for_evaluation
from t2t_jax.state import split_model
from t2t_jax.train import train
from t2t_jax.training.reporter import Reporter
from t2t_jax.training.step import MIX_TOKEN, init_state, make_train_step
from t2t_jax.training.token_labeling import (
    MixToken,
    TokenLabeling,
    draw_mix_token,
    token_label_cross_entropy,
    token_targets,
)
from tests.jax.parallel.test_mesh import start
from tests.jax.test_train import interrupt, metrics
from tests.support.token_labels import LABELLED, write_labelled_folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    data, labels = write_labelled_folder(tmp_path_factory.mktemp("labelled"))
    return dataclasses.replace(
        LABELLED, data=str(data), token_labels=str(labels), epochs=12, eval_every=12, auto_augment=None
    )


# ---- a step ----


GRID = (4, 4)
"""Of 2 x 2 tokens no box has any."""


class Toy(nnx.Module):
    """Pixels as tokens: (B, 4, 4, 1) -> logits of their mean, logits of each."""

    def __init__(self) -> None:
        self.embed, self.head, self.aux_head = (
            nnx.Linear(*sizes, rngs=nnx.Rngs(0)) for sizes in ((1, 8), (8, 4), (8, 4))
        )

    def __call__(self, x: jax.Array, rngs: nnx.Rngs, mix: MixToken | None = None) -> tuple[jax.Array, jax.Array]:
        tokens = jnp.tanh(self.embed(x.reshape(len(x), 16, 1)))
        tokens = tokens if mix is None else mix(tokens, GRID)
        token_logits = self.aux_head(tokens)
        return self.head(tokens.mean(axis=1)), token_logits if mix is None else mix(token_logits, GRID)


def batch(size: int = 8) -> dict[str, np.ndarray]:
    draws = np.random.RandomState(0)
    return {
        "image": draws.standard_normal((size, *GRID, 1)).astype(np.float32),
        "label": draws.randint(0, 4, size),
        "label_scores": draws.standard_normal((size, 2, 6, 6)).astype(np.float32) * 3,
        "label_classes": draws.randint(0, 4, (size, 2, 6, 6)).astype(np.int32),
        "crop": np.tile(np.array([0.1, 0.7, 0.2, 1.0], np.float32), (size, 1)),
    }


def losses(steps: int = 6, grad_accum_steps: int = 1, **options: Any) -> list[float]:
    """Of steps that change nothing, by the same weights and batch."""
    graphdef, params, buffers = split_model(Toy())
    tx = optax.sgd(0.0)
    labeling = TokenLabeling(4, GRID, **options)
    step = make_train_step(graphdef, tx, token_labeling=labeling, grad_accum_steps=grad_accum_steps)
    state, found = init_state(params, buffers, tx, seed=3, average=False), []
    for _ in range(steps):
        state, metrics = step(state, batch())
        found.append(float(metrics["loss"]))
    return found


def test_a_steps_loss_is_that_of_its_parts():
    """With the box that (seed, step) decides."""
    model, given = Toy(), batch()

    @jax.jit
    def expected(number: int) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(3), number)
        mix = draw_mix_token(jax.random.fold_in(key, MIX_TOKEN), GRID, group=2)
        maps = (given[name] for name in ("label_scores", "label_classes", "crop"))
        targets = token_targets(*maps, num_classes=4, grid=GRID, smoothing=0.1)
        return token_label_cross_entropy(*model(given["image"], nnx.Rngs(0), mix), targets, mix, dense_weight=0.7)

    found = losses(dense_weight=0.7, group=2)
    np.testing.assert_allclose(found, [float(expected(number)) for number in range(6)], rtol=1e-6)
    assert len(set(found)) > 1  # boxes, and none


def test_parts_of_a_batch_are_the_whole_batch_and_draw_for_themselves():
    whole = losses(2, mix_token=0.0)
    np.testing.assert_allclose(losses(2, grad_accum_steps=4, mix_token=0.0), whole, rtol=1e-6)
    assert len(set(whole)) == 1
    assert len(set(losses(6, grad_accum_steps=4, group=2))) == 6


# ---- runs ----


@pytest.fixture(scope="module")
def finished(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("finished")
    train(recipe, workdir)
    return workdir


def test_a_run_learns_and_its_checkpoint_has_both_heads(recipe: Recipe, finished: Path):
    found = [line["loss"] for line in metrics(finished) if "loss" in line]
    assert len(found) == 2 * recipe.epochs
    assert np.mean(found[-4:]) < 0.8 * np.mean(found[:4])
    model, _, facts = load_for_evaluation(EvaluateOptions(checkpoint=finished, data=recipe.data or ""))
    assert facts["aux_head"]
    assert model.aux_head.kernel.shape == (64, 4)


def test_an_interrupted_run_continues_bit_for_bit_though_its_maps_have_moved(
    recipe: Recipe, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "step", interrupt(10))
        with pytest.raises(KeyboardInterrupt):
            train(dataclasses.replace(recipe, checkpoint_every_steps=3), tmp_path / "run")
    shutil.copytree(recipe.token_labels or "", tmp_path / "moved")
    train(dataclasses.replace(recipe, token_labels=str(tmp_path / "moved")), tmp_path / "run")
    assert metrics(tmp_path / "run") == metrics(finished)


def test_a_run_without_maps_is_one_line_and_exit_code_2(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    given = ["imagenet_t2t_vit_24_token_labeling", "--data", recipe.data or "", "--workdir", str(tmp_path / "run")]
    for more, message in (
        ([], "this recipe needs label maps: add --token-labels DIR"),
        (["--token-labels", str(tmp_path / "none")], "check --token-labels"),
        (["--cutmix", "1.0"], "cutmix must be 0 with aux_head"),
    ):
        assert cli.run(training.main, [*given, "--batch-size", "16", *more]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


# ---- several devices ----


def test_eight_devices_train_as_one_and_send_no_tokens(recipe: Recipe):
    changes: dict[str, Any] = {"mixup": 0.0, "cutmix": 0.0, "aux_head": True, "mix_token": 1.0}
    order = {
        "devices": 8,
        "data": recipe.data,
        "meshes": {"one": "data=1", "mixed": "data=4,fsdp=2"},
        "changes": {**changes, "token_labels": recipe.token_labels, "drop_path_rate": 0.1, "img_size": 64},
    }
    process = start(order)
    out, _ = process.communicate()
    assert process.returncode == 0
    found = json.loads(out)
    np.testing.assert_allclose(found["mixed"]["losses"], found["one"]["losses"], rtol=1e-6)
    assert found["mixed"]["carrying"] == []
    assert found["mixed"]["messages"] > 0
