"""A run that diverges says what went first, and leaves its last good state alone."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from t2t_common.run_page import PAGE_FILE
from t2t_config import Recipe
from t2t_jax import create_model
from t2t_jax import train as training
from t2t_jax.checkpoint import load_model_state
from t2t_jax.models.transformer_block import Mlp
from t2t_jax.state import load_arrays, model_arrays, split_model
from t2t_jax.train import train
from t2t_jax.training import divergence
from t2t_jax.training.reporter import TrainingDivergedError
from t2t_jax.training.step import Batch, TrainState, TrainStep, init_state, make_train_step

BATCH = {
    "image": np.random.RandomState(0).standard_normal((4, 16, 16, 1)).astype(np.float32),
    "label": np.arange(4, dtype=np.int32) % 4,
}


def started(model: Any, lr: float = 0.0) -> tuple[TrainStep, TrainState]:
    model.train()
    graphdef, params, buffers = split_model(model)
    tx = optax.sgd(lr)
    step: Any = make_train_step(graphdef, tx)
    INSPECTED[step] = lambda look: make_train_step(graphdef, tx, inspect_gradients=look)
    return step, init_state(params, buffers, tx, seed=0, average=False)


INSPECTED: dict[Any, Any] = {}
"""By a step, what makes one that can be inspected."""


def explain(step: TrainStep, *arguments: Any, **steps: int) -> str:
    return divergence.explain(step, INSPECTED[step], *arguments, **steps)


class Net(nnx.Module):
    """Compiles in no time, (B, 16, 16, 1) -> (B, 4): a layer, two blocks of two layers each, a head."""

    def __init__(self) -> None:
        self.embed = nnx.Linear(256, 8, rngs=nnx.Rngs(0))
        self.blocks = nnx.List(Mlp(8, 8, rngs=nnx.Rngs(i)) for i in range(2))
        self.head = nnx.Linear(8, 4, rngs=nnx.Rngs(3))

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = self.embed(x.reshape(len(x), -1))
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)

    def no_weight_decay(self) -> frozenset[str]:
        return frozenset()


def changed(**changes: Callable[[jax.Array], jax.Array]) -> Net:
    """The net with some tensors changed (`__` for a dot)."""
    model = Net()
    arrays = model_arrays(model)
    for name, change in changes.items():
        arrays[name.replace("__", ".")] = change(arrays[name.replace("__", ".")])
    load_arrays(model, arrays)
    return model


def test_a_weight_that_is_infinite():
    step, state = started(changed(blocks__1__fc1__kernel=lambda x: x.at[3, 5].set(jnp.inf)))
    assert explain(step, state, iter([BATCH]), done=0, broken=1) == (
        "first not finite (steps 1 to 1, run again from the start): blocks.1.fc1.kernel before the step, "
        "then the output of blocks.1.fc1"
    )


def test_images_that_are_not_finite():
    step, state = started(Net())
    image = BATCH["image"].copy()
    image[2, 0, 0, 0] = np.nan
    finding = explain(step, state, iter([{**BATCH, "image": image}]), done=0, broken=1)
    assert "images before the step, then the output of embed" in finding


def test_an_output_that_overflows_with_finite_weights():
    """1e30 squared is beyond float32, in the second layer of the first block."""
    large = {f"blocks__0__{layer}__kernel": lambda x: x + 1e30 for layer in ("fc1", "fc2")}
    step, state = started(changed(**large))
    finding = explain(step, state, iter([BATCH]), done=0, broken=1)
    assert finding.endswith("start): the output of blocks.0.fc2"), finding


@pytest.mark.parametrize("scan_blocks", [False, True])
def test_t2t_vit_by_its_own_paths(scan_blocks: bool):
    """A layer inside the attention of a real model, by calls inside calls, also where a scan runs the blocks."""
    model: Any = create_model("t2t_vit_micro", img_size=16, in_chans=1, num_classes=4, scan_blocks=scan_blocks)
    arrays = model_arrays(model)
    arrays["blocks.1.attn.proj.kernel"] = arrays["blocks.1.attn.proj.kernel"].at[3, 5].set(jnp.nan)
    load_arrays(model, arrays)
    step, state = started(model)
    finding = explain(step, state, iter([BATCH]), done=0, broken=1)
    assert finding.endswith("blocks.1.attn.proj.kernel before the step, then the output of blocks.1.attn.proj"), finding


class Root(nnx.Module):
    """sqrt(|w x|): finite everywhere, its gradient at 0 is not."""

    def __init__(self) -> None:
        self.first = nnx.Linear(256, 4, use_bias=False, rngs=nnx.Rngs(0))
        self.last = nnx.Linear(4, 4, rngs=nnx.Rngs(1))

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        return self.last(jnp.sqrt(jnp.abs(self.first(x.reshape(len(x), -1)))))


def test_a_gradient_that_is_infinite_where_all_outputs_are_finite():
    step, state = started(Root())
    finding = explain(step, state, iter([{**BATCH, "image": 0 * BATCH["image"]}]), done=0, broken=1)
    assert finding.endswith("the gradient of first.kernel (1 in all)")


class Scaled(nnx.Module):
    """Gradients of 1e30 each: finite, their norm is not."""

    def __init__(self) -> None:
        self.head = nnx.Linear(256, 4, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        logits = self.head(x.reshape(len(x), -1))
        return logits + 1e30 * (logits - jax.lax.stop_gradient(logits))


def test_a_norm_that_overflows():
    step, state = started(Scaled())
    assert explain(step, state, iter([BATCH]), done=0, broken=1).endswith("but not grad_norm")


def test_a_step_that_is_finite_when_run_again():
    step, state = started(Net())
    assert "hardware may be at fault" in explain(step, state, iter([BATCH] * 3), done=0, broken=3)


def test_the_step_is_as_it_was_afterwards():
    """Traced while it was looked into, it must not go on telling."""
    step, state = started(Net())
    classes: dict[Any, Any] = {nnx.Linear: nnx.Linear.__call__, Root: Root.__call__}
    explain(step, jax.tree.map(jnp.copy, state), iter([BATCH]), done=0, broken=1)
    assert {cls: cls.__call__ for cls in classes} == classes
    assert "callback" not in step.lower(state, BATCH).as_text()  # type: ignore[attr-defined]


def test_the_steps_before_are_run_again_with_their_batches():
    """The third batch breaks it; the first two move the weights, from the state of step 10."""
    step, state = started(Net(), lr=0.1)
    seen: list[float] = []

    def counted(state: TrainState, batch: Batch) -> Any:
        seen.append(float(np.asarray(batch["image"]).flat[0]))
        return step(state, batch)

    INSPECTED[counted] = INSPECTED[step]
    batches = [{**BATCH, "image": np.full_like(BATCH["image"], value)} for value in (1.0, 2.0, np.inf, 4.0)]
    finding = explain(counted, state, iter(batches), done=10, broken=13)
    assert seen == [1.0, 2.0]  # the third is run by the step that is inspected
    assert finding.startswith(
        "first not finite (steps 11 to 13, run again from the checkpoint of step 10): images before the step"
    )


def test_a_run_says_what_went_first_and_spares_its_checkpoints(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The learning rate is 0 in the first epoch, 5e29 in the second: its second step breaks, where weights of 5e29 meet
    the outputs of other such weights: their product overflows float32."""
    monkeypatch.setattr(training, "build_model", lambda recipe: Net())
    hot = dataclasses.replace(recipe, lr=1e30, warmup_epochs=2, warmup_lr=0.0, checkpoint_every=1, clip_grad=None)
    with pytest.raises(TrainingDivergedError) as caught:
        train(hot, tmp_path)
    assert re.match(
        r"step 10: .*loss is (nan|inf).*lower --lr .*first not finite \(steps 9 to 10, run again", str(caught.value)
    )
    assert str(caught.value).endswith("run again from the checkpoint of step 8): the output of blocks.0.fc1")
    page = (tmp_path / PAGE_FILE).read_text()
    assert ": diverged</title>" in page
    assert "run again from the checkpoint of step 8): the output of blocks.0.fc1" in page
    assert caught.value.step == 10
    saved = load_model_state(tmp_path, use_ema=False).arrays
    chex.assert_trees_all_equal(dict(saved), model_arrays(Net()))


def test_that_it_cannot_be_told_does_not_hide_the_divergence(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*args: Any, **kwargs: Any) -> str:
        raise RuntimeError("no memory")

    monkeypatch.setattr(training, "explain", fail)
    monkeypatch.setattr(training, "build_model", lambda recipe: Net())
    hot = dataclasses.replace(recipe, lr=1e30, warmup_epochs=0, clip_grad=None)
    with pytest.raises(
        TrainingDivergedError, match=r"lower --lr.*first non-finite module could not be determined \(no memory\)"
    ):
        train(hot, tmp_path)
