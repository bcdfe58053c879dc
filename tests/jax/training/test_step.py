from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh

from t2t_common.evaluation import cpu_chunks
from t2t_jax import create_model
from t2t_jax.models.layers import Buffer
from t2t_jax.models.transformer_block import Mlp
from t2t_jax.parallel.block_boundaries import on_one_cpu
from t2t_jax.parallel.mesh import AXES
from t2t_jax.state import load_arrays, merge_model, model_arrays, split_model
from t2t_jax.training.mixup import Mixup
from t2t_jax.training.optim import adamw, decay_mask
from t2t_jax.training.random_erasing import RandomErasing
from t2t_jax.training.step import TrainState, init_state, make_forward, make_train_step
from tests.support.golden import rel_f
from tests.support.jax_models import equations


class Toy(nnx.Module):
    """One layer with dropout and a frozen tensor, (B, 2, 2, 1) -> (B, 3)."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(4, 3, rngs=rngs)])
        self.offset = Buffer(jnp.arange(3, dtype=jnp.float32))
        self.drop = nnx.Dropout(0.5)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        return self.layers[0](self.drop(x.reshape(len(x), -1), rngs=rngs)) + self.offset[None]


class TwoHeads(Toy):
    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> tuple[jax.Array, jax.Array]:
        logits = self.layers[0](x.reshape(len(x), -1))
        return logits, 2 * logits


AUGMENTED = {"mixup": Mixup(0.8, 1.0, num_classes=3), "random_erasing": RandomErasing(0.5)}


def batch(seed: int = 0) -> dict[str, np.ndarray]:
    draws = np.random.RandomState(seed)
    return {
        "image": draws.standard_normal((8, 2, 2, 1)).astype(np.float32),
        "label": draws.randint(0, 3, 8).astype(np.int32),
    }


def start(model: nnx.Module, *, seed: int = 0) -> tuple[nnx.GraphDef, optax.GradientTransformation, TrainState]:
    model.train()
    graphdef, params, buffers = split_model(model)
    tx = adamw(1e-2, weight_decay=0.1, mask=decay_mask(params))
    return graphdef, tx, init_state(params, buffers, tx, seed=seed, average=True)


def test_model_goes_through_flat_arrays_and_back():
    model = Toy(nnx.Rngs(0))
    graphdef, params, buffers = split_model(model)
    assert set(params) == {"layers.0.kernel", "layers.0.bias"}
    assert set(buffers) == {"offset"}
    rebuilt = merge_model(graphdef, {**params, **buffers})
    assert isinstance(rebuilt.offset, Buffer)
    chex.assert_trees_all_equal(model_arrays(rebuilt), model_arrays(model))


def test_load_arrays_lists_every_misfit_and_changes_nothing():
    model = Toy(nnx.Rngs(0))
    before = model_arrays(model)
    wrong = {"layers.0.kernel": np.zeros((4, 5)), "layers.0.bias": np.zeros(3), "extra": np.zeros(1)}
    with pytest.raises(
        ValueError, match=r"missing: offset; unknown: extra; of another shape: layers.0.kernel \(4, 5\)"
    ):
        load_arrays(model, wrong)
    chex.assert_trees_all_equal(model_arrays(model), before)


@pytest.mark.parametrize("augmentation", [{}, AUGMENTED], ids=["plain", "augmented"])
def test_step_is_traced_once_and_donates_its_state(augmentation: dict[str, Any]):
    graphdef, tx, state = start(Toy(nnx.Rngs(0)))
    step = make_train_step(graphdef, tx, ema_decay=0.9, **augmentation)
    chex.clear_trace_counter()
    traced_once = jax.jit(chex.assert_max_traces(step.__wrapped__, n=1), donate_argnums=0)
    old = state
    with jax.debug_nans(False):  # or JAX donates nothing
        for seed in range(3):
            state, _ = traced_once(state, batch(seed))
    assert old.params["layers.0.kernel"].is_deleted()
    assert int(state.step) == 3


def test_step_is_one_hand_written_update():
    """Loss, gradient norm, parameters and average against the same arithmetic written out, without dropout."""
    model = Toy(nnx.Rngs(0))
    model.drop.rate = 0.0
    graphdef, tx, state = start(model)
    kernel, bias = (np.float64(state.params[f"layers.0.{name}"]) for name in ("kernel", "bias"))
    data = batch()
    x = data["image"].reshape(8, 4).astype(np.float64)
    logits = x @ kernel + bias + np.arange(3)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    target = 0.9 * np.eye(3)[data["label"]] + 0.1 / 3
    dlogits = (p - target) / 8
    grads = {"kernel": x.T @ dlogits, "bias": dlogits.sum(0)}

    new, metrics = make_train_step(graphdef, tx, label_smoothing=0.1, ema_decay=0.9)(state, data)
    assert float(metrics["loss"]) == pytest.approx(-np.mean(np.sum(target * np.log(p), 1)), rel=1e-6)
    norm = np.sqrt(sum(np.sum(g**2) for g in grads.values()))
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-6)
    # AdamW's first step is lr * sign(g), and decay shrinks the kernel only.
    moved_kernel = kernel * (1 - 1e-2 * 0.1) - 1e-2 * np.sign(grads["kernel"])
    moved_bias = bias - 1e-2 * np.sign(grads["bias"])
    np.testing.assert_allclose(new.params["layers.0.kernel"], moved_kernel, atol=1e-6)
    np.testing.assert_allclose(new.params["layers.0.bias"], moved_bias, atol=1e-6)
    np.testing.assert_allclose(new.ema["layers.0.bias"], 0.9 * bias + 0.1 * moved_bias, atol=1e-6)
    np.testing.assert_allclose(new.buffers["offset"], np.arange(3))
    np.testing.assert_allclose(new.ema["offset"], np.arange(3), rtol=1e-6)


def test_randomness_is_decided_by_seed_and_step():
    def losses(seed: int) -> list[float]:
        graphdef, _, state = start(Toy(nnx.Rngs(0)), seed=seed)
        frozen = optax.set_to_zero()
        state = state._replace(opt_state=frozen.init(state.params))
        step = make_train_step(graphdef, frozen, ema_decay=0.9)
        read = []
        for _ in range(3):
            state, metrics = step(state, batch())
            read.append(float(metrics["loss"]))
        return read

    first = losses(0)
    assert first == losses(0)
    assert len(set(first)) == 3  # nothing moves but the dropout mask
    assert first != losses(1)


def test_augmentation_is_mixup_then_erasing_on_its_own_keys():
    """Losses of a model without dropout against loss and augmentation written out, step by step."""
    model = Toy(nnx.Rngs(0))
    model.drop.rate = 0.0
    graphdef, _, state = start(model, seed=3)
    frozen = optax.set_to_zero()
    state = state._replace(opt_state=frozen.init(state.params))
    kernel, bias = (np.asarray(state.params[f"layers.0.{name}"]) for name in ("kernel", "bias"))
    step = make_train_step(graphdef, frozen, label_smoothing=0.3, ema_decay=0.9, **AUGMENTED)

    @jax.jit
    def expected(number: int) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), number), 2**32 - 1)
        mixup_key, erasing_key = jax.random.split(key)
        images, targets = AUGMENTED["mixup"](batch()["image"], batch()["label"], mixup_key)
        images = AUGMENTED["random_erasing"](images, erasing_key)
        logits = images.reshape(8, 4) @ kernel + (bias + np.arange(3))[None]
        return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits), axis=1))

    seen = set()
    for number in range(4):
        state, metrics = step(state, batch())
        assert float(metrics["loss"]) == pytest.approx(float(expected(number)), rel=1e-5)
        seen.add(float(metrics["loss"]))
    assert len(seen) == 4


def test_augmentation_leaves_the_keys_of_dropout_alone():
    """An augmentation that never acts changes no loss of a model with dropout: old runs go on as they were."""
    losses = []
    for augmentation in ({}, {"mixup": Mixup(prob=0.0, num_classes=3), "random_erasing": RandomErasing(0.0)}):
        graphdef, tx, state = start(Toy(nnx.Rngs(0)))
        _, metrics = make_train_step(graphdef, tx, label_smoothing=0.1, **augmentation)(state, batch())
        losses.append(float(metrics["loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_batch_in_parts_is_the_whole_batch():
    """Without dropout; augmentation has happened before the batch is cut."""
    model = Toy(nnx.Rngs(0))
    model.drop.rate = 0.0
    graphdef, tx, state = start(model)
    found = []
    for parts in (1, 4):
        step = make_train_step(graphdef, tx, ema_decay=0.9, grad_accum_steps=parts, **AUGMENTED)
        found.append(step(jax.tree.map(jnp.copy, state), batch()))
    (whole, metrics), (cut, cut_metrics) = found
    chex.assert_trees_all_close(cut_metrics, metrics, rtol=1e-6)
    chex.assert_trees_all_close(cut._asdict(), whole._asdict(), rtol=1e-5, atol=1e-6)


def test_every_part_of_a_batch_has_dropout_of_its_own():
    graphdef, _, state = start(Toy(nnx.Rngs(0)))
    frozen = optax.set_to_zero()
    state = state._replace(opt_state=frozen.init(state.params))
    alike = {"image": np.ones((8, 2, 2, 1), np.float32), "label": np.zeros(8, np.int32)}
    losses = []
    for parts in (1, 2, 4, 8):
        _, metrics = make_train_step(graphdef, frozen, grad_accum_steps=parts)(jax.tree.map(jnp.copy, state), alike)
        losses.append(float(metrics["loss"]))
    assert len(set(losses)) == len(losses)


class Blocks(nnx.Module):
    """Two blocks with dropout, (B, 2, 2, 1) -> (B, 3)."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.blocks = nnx.List([Mlp(4, 8, drop=0.5, rngs=rngs) for _ in range(2)])
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = x.reshape(len(x), 1, -1)
        for block in self.blocks:
            x = block(x, rngs)
        return self.head(x[:, 0])


def test_rematerialisation_changes_the_program_and_not_the_numbers():
    graphdef, tx, state = start(Blocks(nnx.Rngs(0)))
    steps = [make_train_step(graphdef, tx, ema_decay=0.9, remat=remat) for remat in (False, True)]
    (plain, metrics), (again, again_metrics) = (step(jax.tree.map(jnp.copy, state), batch()) for step in steps)
    chex.assert_trees_all_close(again_metrics, metrics, rtol=1e-6)
    chex.assert_trees_all_close(again._asdict(), plain._asdict(), rtol=1e-5, atol=1e-6)
    counts = [str(jax.make_jaxpr(step.__wrapped__)(state, batch())).count("dot_general") for step in steps]
    assert counts[1] - counts[0] == 2  # fc1 of both blocks; nobody needs the output of fc2


def test_fences_keep_blocks_apart_and_change_no_number():
    graphdef, tx, state = start(Blocks(nnx.Rngs(0)))
    fenced, plain = (make_train_step(graphdef, tx, ema_decay=0.9, fence=fence) for fence in (True, False))
    runs = [step(jax.tree.map(jnp.copy, state), batch()) for step in (fenced, plain)]
    (apart, metrics), (fused, fused_metrics) = runs
    chex.assert_trees_all_close(metrics, fused_metrics, rtol=1e-6)
    chex.assert_trees_all_close(apart._asdict(), fused._asdict(), rtol=1e-5, atol=1e-6)
    calls = [step.lower(state, batch()).compile().as_text().count('inlineable="false"') for step in (fenced, plain)]
    assert calls[1] == 0
    assert calls[0] >= 4  # of two blocks, forward and backward


def test_blocks_are_fenced_on_one_cpu_alone():
    assert on_one_cpu()
    assert on_one_cpu(jax.make_mesh((1, 1), AXES, devices=jax.devices()[:1]))
    assert not on_one_cpu(AbstractMesh((1, 1), AXES))  # of a device that is not there
    assert not on_one_cpu(AbstractMesh((4, 1), AXES))


def test_several_heads_share_the_loss():
    graphdef, tx, state = start(TwoHeads(nnx.Rngs(0)))
    x = batch()["image"].reshape(8, 4)
    logits = x @ np.asarray(state.params["layers.0.kernel"]) + np.asarray(state.params["layers.0.bias"])
    labels = batch()["label"]
    expected = np.mean([np.mean(np.log(np.exp(s * logits).sum(1)) - s * logits[np.arange(8), labels]) for s in (1, 2)])
    _, metrics = make_train_step(graphdef, tx)(state, batch())
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)


def test_soft_targets_train_too():
    graphdef, tx, state = start(TwoHeads(nnx.Rngs(0)))
    hard = batch()
    soft = {**hard, "label": np.eye(3, dtype=np.float32)[hard["label"]]}
    step = make_train_step(graphdef, tx)
    _, expected = step(jax.tree.map(jnp.copy, state), hard)
    _, metrics = step(state, soft)
    assert float(metrics["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-6)


def test_bfloat16_computes_low_and_keeps_float32():
    model = create_model("t2t_vit_micro", img_size=16, num_classes=3, in_chans=1, dtype=jnp.bfloat16)
    forward = make_forward(split_model(model)[0])
    images = np.random.RandomState(0).standard_normal((2, 16, 16, 1)).astype(np.float32)
    low = forward(model_arrays(model), images)
    full = create_model("t2t_vit_micro", img_size=16, num_classes=3, in_chans=1)
    high = make_forward(split_model(full)[0])(model_arrays(full), images)
    assert all(array.dtype == jnp.float32 for array in model_arrays(model).values())
    assert low.dtype == jnp.float32
    assert 0 < np.abs(low - high).max() < 0.1 * np.abs(high).max()


def test_a_cpu_evaluates_few_images_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu_chunks, "PIXELS_A_CORE", 2 * 16 * 16 / cpu_chunks.available_cores())
    with jax.enable_x64(True):
        model = create_model("t2t_vit_micro", img_size=16, num_classes=3, in_chans=1, param_dtype=jnp.float64)
        graphdef, arrays = split_model(model)[0], model_arrays(model)
        images = jnp.asarray(np.random.RandomState(0).standard_normal((8, 16, 16, 1)))
        forward = make_forward(graphdef)
        (scan,) = (e for e in equations(jax.make_jaxpr(forward)(arrays, images).jaxpr) if e.primitive.name == "scan")
        assert scan.params["length"] == 4
        assert rel_f(forward(arrays, images), jax.jit(merge_model(graphdef, arrays))(images)) < 1e-13
