"""Runs handed over: k steps in one framework and the rest in the other are the whole run in either."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from parity import build_ledger, torch_to_jax
from parity.carry.convert import to_numpy
from parity.optimizer_state.convert import ema_to_jax, ema_to_torch, optimizer_to_jax, optimizer_to_torch
from t2t_jax.state import split_model
from t2t_jax.training.optim import adamw, decay_mask
from t2t_jax.training.step import TrainState, init_state, make_train_step
from t2t_torch.training.optim import Ema, param_groups
from tests.support.parity.handover import (
    KINDS,
    STEPS,
    JaxRun,
    TorchRun,
    rates_are_set_later,
    to_jax,
    to_torch,
    toy,
    worst,
)
from tests.support.parity.pairs import micro

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture(scope="module", params=KINDS)
def whole(request: pytest.FixtureRequest) -> tuple[str, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """All steps in one framework: PyTorch, and JAX."""
    with jax.enable_x64(True):
        torch_model, jax_model, ledger = toy()
        in_torch = TorchRun(torch_model, request.param).go(0, STEPS).results()
        return request.param, in_torch, JaxRun(jax_model, request.param).go(0, STEPS).results(ledger)


@pytest.mark.parametrize("k", [0, 1, 5, STEPS - 1, STEPS])
def test_handed_over_to_jax(whole: tuple, k: int):
    kind, in_torch, in_jax = whole
    torch_model, _, ledger = toy()
    found = to_jax(TorchRun(torch_model, kind).go(0, k), kind, ledger, k).go(k, STEPS).results(ledger)
    assert worst(found, in_torch) <= 1e-12
    assert worst(found, in_jax) <= 1e-12


@pytest.mark.parametrize("k", [0, 1, 5, STEPS - 1, STEPS])
def test_handed_over_to_pytorch(whole: tuple, k: int):
    kind, in_torch, in_jax = whole
    _, jax_model, ledger = toy()
    run, steps = to_torch(JaxRun(jax_model, kind).go(0, k), kind, ledger)
    assert steps == k
    found = run.go(k, STEPS).results()
    assert worst(found, in_torch) <= 1e-12
    assert worst(found, in_jax) <= 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_moments_a_run_goes_astray(kind: str):
    """The hand-over tests can fail: weights and position alone do not continue a run."""
    torch_model, _, ledger = toy()
    run = TorchRun(torch_model, kind).go(0, 5)
    other = to_jax(run, kind, ledger, 5)
    other.opt_state = jax.tree.map(lambda x: x if x.ndim == 0 else jnp.zeros_like(x), other.opt_state)
    assert worst(other.go(5, STEPS).results(ledger), run.go(5, STEPS).results()) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_is_bit_for_bit(kind: str):
    torch_model, _, ledger = toy()
    run = TorchRun(torch_model, kind).go(0, 5)
    back, _ = to_torch(to_jax(run, kind, ledger, 5), kind, ledger)
    ours, theirs = run.optimizer.state_dict()["state"], back.optimizer.state_dict()["state"]
    assert ours.keys() == theirs.keys() != set()
    for index, state in ours.items():
        assert state.keys() == theirs[index].keys()
        for key, value in state.items():
            assert torch.equal(value, theirs[index][key]), key
            assert value.dtype == theirs[index][key].dtype
    assert all(torch.equal(value, back.ema.state[name]) for name, value in run.ema.state.items())


def test_moments_change_layout_with_their_weights():
    torch_model, jax_model, ledger = toy()
    run = TorchRun(torch_model, "adamw").go(0, 3)
    other = JaxRun(jax_model, "adamw")
    state = optimizer_to_jax(run.optimizer, run.model, other.opt_state, ledger, tx=other.tx)
    adam, position = state[0], state[2]
    moment = run.optimizer.state[run.model.conv.weight]["exp_avg"].numpy()
    np.testing.assert_array_equal(adam.mu["conv.kernel"], moment.transpose(2, 3, 1, 0))
    assert (int(adam.count), int(position.count)) == (3, 3)


def test_ten_steps_here_and_ten_there_are_twenty():
    """T2T-ViT by the very step of `t2t_jax.train`: AdamW with its groups, an average, both directions."""
    torch_model, jax_model = micro(depth=1, performer_drop_rate=0.0)
    torch_model.double()
    torch_to_jax(torch_model, jax_model)
    ledger = build_ledger(torch_model, jax_model)
    graphdef, params, buffers = split_model(jax_model)
    tx = adamw(schedule20, weight_decay=0.05, mask=decay_mask(params, jax_model.no_weight_decay()))
    step = make_train_step(graphdef, tx, label_smoothing=0.1, ema_decay=0.9)
    fresh = init_state(params, buffers, tx, seed=0, average=True)
    # XLA's optimiser changes no digit that counts here, and takes most of the time.
    compiled = step.lower(fresh, jax_photos(0)).compile({"xla_backend_optimization_level": 0})

    def jax_steps(state: TrainState, steps: range) -> TrainState:
        state = jax.tree.map(jnp.copy, state)  # the step uses up its own
        for i in steps:
            state, _ = compiled(state, jax_photos(i))
        return state

    def torch_start() -> tuple[torch.nn.Module, torch.optim.Optimizer, Ema]:
        model = copy.deepcopy(torch_model)
        return model, torch.optim.AdamW(param_groups(model, 0.05)), Ema(model, 0.9)

    def torch_steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, ema: Ema, steps: range) -> None:
        for i in steps:
            x, y = map(torch.from_numpy, photos(i))
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y, label_smoothing=0.1).backward()
            for group in optimizer.param_groups:
                group["lr"] = rate20(i)
            optimizer.step()
            ema.update(model)

    def numpy(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return {name: to_numpy(array) for name, array in arrays.items()}

    first, second = range(10), range(10, 20)
    in_torch = torch_start()
    torch_steps(*in_torch, first)
    with rates_are_set_later():
        handed = fresh._replace(opt_state=optimizer_to_jax(in_torch[1], in_torch[0], fresh.opt_state, ledger, tx=tx))
    weights = ema_to_jax(in_torch[0].state_dict(), fresh.raw, ledger)
    handed = handed._replace(
        params={name: weights[name] for name in params},
        buffers={name: weights[name] for name in buffers},
        ema=ema_to_jax(in_torch[2].state, fresh.ema, ledger),
        step=jnp.asarray(10, jnp.int32),
    )
    torch_jax = jax_steps(handed, second)
    torch_steps(*in_torch, second)

    half = jax_steps(fresh, first)
    model, optimizer, ema = torch_start()
    model.load_state_dict(ema_to_torch(half.raw, ledger))
    with rates_are_set_later():
        assert optimizer_to_torch(half.opt_state, ledger, model, optimizer, tx=tx) == 10
    ema.state = ema_to_torch(half.ema, ledger)
    in_jax = jax_steps(half, second)
    torch_steps(model, optimizer, ema, second)

    wanted, average = numpy(in_torch[0].state_dict()), numpy(in_torch[2].state)
    for weights, averages in [
        (ema_to_torch(torch_jax.raw, ledger), ema_to_torch(torch_jax.ema, ledger)),
        (model.state_dict(), ema.state),
        (ema_to_torch(in_jax.raw, ledger), ema_to_torch(in_jax.ema, ledger)),
    ]:
        assert worst(numpy(weights), wanted) <= 1e-10
        assert worst(numpy(averages), average) <= 1e-10


def photos(step: int) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.RandomState(step)
    return draws.standard_normal((2, 3, 32, 32)), draws.randint(0, 10, 2)


def jax_photos(step: int) -> dict[str, np.ndarray]:
    x, y = photos(step)
    return {"image": x.transpose(0, 2, 3, 1), "label": y.astype(np.int32)}


def rate20(step: int) -> float:
    return 1e-3 * (1 + np.cos(np.pi * step / 20)) / 2


def schedule20(step: jax.Array) -> jax.Array:
    return jnp.asarray([rate20(i) for i in range(20)])[step]
