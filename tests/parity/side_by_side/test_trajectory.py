"""Training side by side: the same passes, and every single difference in how one side trains is found and placed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from parity.side_by_side.optimizers import Training, TrainingLoss, adamw
from parity.side_by_side.trajectory import Step, TrainingGates, TrainingProof, distance, train_side_by_side
from tests.support.parity.handover import batch, toy
from tests.support.parity.pairs import images, resnet

STEPS = 4


def one_batch(step: int) -> tuple[list[np.ndarray], np.ndarray]:
    x, y = batch(step)
    return [x], y


SQUARES = TrainingLoss(lambda x, y: (x - y).square().mean(), lambda x, y: jnp.square(x - y).mean())


def factor(step: int) -> float:
    return (step + 1) / STEPS


def schedule(step: jax.Array) -> jax.Array:
    return 0.01 * (step + 1) / STEPS


def toy_training(**changes: Any) -> Training:
    arguments = {"weight_decay": 0.1, "factor": factor, "schedule": schedule, "ema_decay": 0.9, "loss": SQUARES}
    return adamw(0.01, **arguments | changes)


def train(training: Training, steps: int = STEPS, **options: Any) -> TrainingProof:
    with jax.enable_x64(True):
        torch_model, jax_model, _ = toy()
    return train_side_by_side(torch_model, jax_model, one_batch, steps, training, **options)


def failures(proof: TrainingProof) -> set[str]:
    """Kinds of the rows that fail."""
    return {row.kind for row in proof.rows if not row.passed}


def test_the_same_training():
    seen: list[tuple[int, Step]] = []
    proof = train(toy_training(), progress=lambda number, step: seen.append((number, step)))
    assert proof.passed
    assert proof.causes == ()
    assert [number for number, _ in seen] == [1, 2, 3, 4]
    assert tuple(step.distance64 for _, step in seen) == proof.trajectory.distance64
    assert {row.kind for row in proof.rows} == {"decay mask", "schedule", "average", "step"}
    assert max(proof.trajectory.distance64) <= 1e-12
    assert 1e-9 < max(proof.trajectory.distance32_jax) < 1e-4
    np.testing.assert_allclose(proof.trajectory.loss_jax, proof.trajectory.loss_torch, rtol=1e-13)
    assert {row.name for row in proof.rows if row.kind == "step"} == {name for name, _ in toy()[0].named_parameters()}


def test_distances_are_those_of_runs_by_hand():
    """Plain Adam at four times the rate: how far apart one step leaves them, written out."""
    proof = train(dataclasses.replace(toy_training(), jax=lambda params: optax.adam(0.01), jax_rate=0.01))
    torch_model, _, _ = toy()
    (x,), y = one_batch(0)
    loss = (torch_model(torch.from_numpy(x)) - torch.from_numpy(y)).square().mean()
    loss.backward()
    ways = [], []
    for p in torch_model.parameters():
        direction = p.grad / (p.grad.abs() + 1e-8)  # Adam's first step
        ways[0].append(0.0025 * (direction + 0.1 * p.detach() * (p.ndim > 1)))
        ways[1].append(0.01 * direction)
    travelled, apart = (
        np.sqrt(sum(float(w.square().sum()) for w in way))
        for way in (ways[0], [a - b for a, b in zip(*ways, strict=True)])
    )
    assert proof.trajectory.loss_torch[0] == pytest.approx(loss.item(), rel=1e-14)
    assert proof.trajectory.distance64[0] == pytest.approx(apart / travelled, rel=1e-9)


def changed_tx(make: Callable[[Any], optax.GradientTransformation]) -> Training:
    return dataclasses.replace(toy_training(), jax=make)


def with_adamw(**changes: Any) -> Training:
    def make(params: Any) -> optax.GradientTransformation:
        mask = {name: p.ndim > 1 for name, p in params.items()}
        return optax.adamw(**{"learning_rate": schedule, "weight_decay": 0.1, "mask": mask} | changes)

    return changed_tx(make)


@pytest.mark.parametrize(
    ("changes", "smallest"),
    [
        ({"eps": 1e-7}, 1e-8),
        ({"b1": 0.91}, 1e-3),
        ({"b2": 0.99}, 1e-3),
        ({"eps_root": 1e-12}, 1e-9),
        ({"weight_decay": 0.101}, 1e-6),
        ({"nesterov": True}, 1e-2),
    ],
)
def test_another_optimiser_goes_elsewhere(changes: dict[str, Any], smallest: float):
    assert train(with_adamw()).passed
    proof = train(with_adamw(**changes))
    assert not proof.trajectory.passed
    assert max(proof.trajectory.distance64) > smallest


@pytest.mark.parametrize(
    ("changes", "switch", "text"),
    [
        ({"weight_decay": 1e-4}, "weight decay", "weight decay 0.1 -> 0.0001"),
        ({"eps": 1e-7}, "optimiser eps", "eps 1e-08 -> 1e-07"),
        ({"b2": 0.99}, "betas", "b2 0.999 -> 0.99"),
        ({"nesterov": True}, "nesterov", "plain -> Nesterov momentum"),
        ({"mask": None}, "decay mask", "decays all parameters"),
        ({"learning_rate": lambda step: 2 * schedule(step)}, "learning rate", "learning rate times 2"),
    ],
)
def test_the_switch_of_a_wrong_optimiser_is_named(changes: dict[str, Any], switch: str, text: str):
    (cause,) = train(with_adamw(**changes)).causes
    assert (cause.module, cause.switch, cause.description) == ("", switch, text)
    assert cause.error_after <= 1e-10 < cause.error_before


def test_what_no_switch_explains_has_no_cause():
    assert train(with_adamw(weight_decay=0.101)).causes == ()
    assert train(dataclasses.replace(toy_training(), jax=lambda params: optax.sgd(0.01))).causes == ()


def test_decay_of_one_parameter_more():
    proof = train(with_adamw(mask=lambda params: {name: name != "conv.bias" for name in params}))
    row = next(row for row in proof.rows if row.kind == "decay mask")
    assert row.note == "layers.0.bias decays only in JAX"
    assert (row.error, row.passed) == (1.0, False)


def test_decay_is_seen_behind_a_warm_up_from_zero():
    def from_zero(step: Any) -> Any:
        return 0.01 * step

    proof = train(
        dataclasses.replace(
            toy_training(factor=lambda step: float(step), schedule=from_zero),
            jax=lambda params: optax.adamw(from_zero, weight_decay=0.1),
        )
    )
    row = next(row for row in proof.rows if row.kind == "decay mask")
    assert row.note == "conv.bias decays only in JAX; layers.0.bias decays only in JAX"


def test_a_schedule_one_step_late():
    def late(step: jax.Array) -> jax.Array:
        return schedule(jnp.maximum(step - 1, 0))

    proof = train(dataclasses.replace(toy_training(schedule=late), jax_rate=late))
    assert failures(proof) == {"schedule"}
    assert [(cause.switch, cause.description) for cause in proof.causes] == [("schedule shift", "JAX is 1 behind")]
    assert proof.trajectory.distance64[0] <= 1e-10 < proof.trajectory.distance64[1]


def test_another_average():
    def ema(average: Any, values: Any) -> Any:
        return optax.incremental_update(values, average, 0.1 + 1e-9)

    proof = train(dataclasses.replace(toy_training(), jax_ema=ema))
    assert failures(proof) == {"average"}
    assert proof.trajectory.passed
    assert not proof.passed


def test_the_first_step_names_the_parameter():
    def make(params: Any) -> optax.GradientTransformation:
        def update(updates: Any, state: Any, params: Any = None) -> Any:
            return {**updates, "layers.0.bias": updates["layers.0.bias"] * (1 + 1e-6)}, state

        slip = optax.GradientTransformation(lambda params: optax.EmptyState(), update)
        return optax.chain(toy_training().jax(params), slip)

    proof = train(changed_tx(make))
    assert [row.name for row in proof.rows if not row.passed] == ["layers.0.bias"]


def test_float32_is_judged_by_pytorchs_own():
    """Gradients rounded to 12 bits leave float64 alone and stray further than PyTorch does."""

    def make(params: Any) -> optax.GradientTransformation:
        def rounded(g: jax.Array) -> jax.Array:
            return g.astype(jnp.bfloat16).astype(g.dtype) if g.dtype == jnp.float32 else g

        coarse = optax.GradientTransformation(
            lambda params: optax.EmptyState(), lambda g, state, params=None: (jax.tree.map(rounded, g), state)
        )
        return optax.chain(coarse, toy_training().jax(params))

    proof = train(changed_tx(make))
    assert max(proof.trajectory.distance64) <= 1e-12
    assert failures(proof) == set()
    assert not proof.trajectory.passed


def test_running_statistics_go_along():
    """BatchNorm in training: statistics are carried from step to step, and never trained."""
    torch_model, jax_model = resnet()

    def make_batch(step: int) -> tuple[list[np.ndarray], np.ndarray]:
        return [images(4, 3, 8, 8, seed=step)], np.arange(4) % 5

    proof = train_side_by_side(torch_model, jax_model, make_batch, 3, adamw(1e-3, ema_decay=0.9))
    assert failures(proof) == set()
    assert max(proof.trajectory.distance64) <= 1e-10
    assert not any("running" in row.name for row in proof.rows if row.kind == "step")


def test_the_models_stay_as_they_are():
    with jax.enable_x64(True):
        torch_model, jax_model, _ = toy()
        before = torch_model.conv.weight.detach().clone(), np.asarray(jax_model.conv.kernel[...])
        train_side_by_side(torch_model, jax_model, one_batch, 1, toy_training())
        assert torch.equal(torch_model.conv.weight, before[0])
        np.testing.assert_array_equal(jax_model.conv.kernel[...], before[1])


def test_dropout_is_off():
    class TorchDrop(torch.nn.Sequential):
        def __init__(self) -> None:
            super().__init__(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 2))

    class FlaxDrop(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            layers = [nnx.Linear(3, 4, rngs=rngs), nnx.Dropout(0.5, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)]
            self.layers = nnx.List(layers)

        def __call__(self, x: jax.Array) -> jax.Array:
            for layer in self.layers:
                x = layer(x)
            return x

    from parity import Rules
    from tests.support.parity.pairs import carried

    rules = Rules(rename={r"(\d)": r"layers.\1"})
    torch_model, jax_model = carried(TorchDrop(), FlaxDrop(), rules)
    proof = train_side_by_side(
        torch_model, jax_model, lambda step: ([images(2, 3, seed=step)], np.array([0, 1])), 2, adamw(), rules=rules
    )
    assert max(proof.trajectory.distance64) <= 1e-12


def test_nothing_to_compare_is_an_error():
    with pytest.raises(ValueError, match="at least one step, got 0"):
        train(toy_training(), steps=0)
    with pytest.raises(ValueError, match="the weights never moved"):
        train(adamw(0.0, loss=SQUARES), steps=1)


def test_weights_that_are_not_finite_fail():
    proof = train(toy_training(factor=lambda step: float("nan"), schedule=lambda step: jnp.nan * step), steps=1)
    assert not proof.trajectory.passed
    assert not next(row for row in proof.rows if row.kind == "schedule").passed


def test_the_floor_is_the_rounding_of_beta():
    """0.999 is not a float32 number, 0.5 is: with it JAX stays as close as PyTorch does, without any floor."""
    rounded, exact = (train(toy_training(betas=betas)).trajectory for betas in ((0.9, 0.999), (0.5, 0.5)))
    share = abs(float(np.float32(0.999)) - 0.999) / (1 - 0.999) / 2
    assert 0.5 * share < min(rounded.distance32_jax) <= max(rounded.distance32_jax) < 2 * share
    assert (np.array(rounded.distance32_jax) > 1.5 * np.array(rounded.distance32_torch)).all()
    assert (np.array(exact.distance32_jax) < 1.2 * np.array(exact.distance32_torch)).all()


def test_distance():
    a, b = {"x": np.array([3.0]), "y": np.zeros(2)}, {"x": np.array([0.0]), "y": np.array([0.0, 4.0])}
    assert distance(a, b) == 5.0
    with pytest.raises(ValueError, match="on one side only: y, z"):
        distance(a, {"x": a["x"], "z": a["y"]})


def test_json():
    proof = train(toy_training(), steps=1, gates=TrainingGates(distance64=0.0))
    payload = json.loads(proof.to_json({"name": "toy"}))
    assert payload["passed"] is False
    assert payload["settings"] == {"name": "toy"}
    assert payload["trajectory"]["distance64"] == list(proof.trajectory.distance64)
    assert payload["trajectory"]["gate64"] == 0.0
    assert {row["kind"] for row in payload["rows"]} == {"decay mask", "schedule", "average", "step"}
