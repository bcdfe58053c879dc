"""Optimiser states of any shape there and back; everything that has no partner is refused, and listed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from parity import torch_to_jax
from parity.carry.convert import to_numpy, to_tensor
from parity.optimizer_state.convert import ema_to_jax, ema_to_torch, optimizer_to_jax, optimizer_to_torch
from t2t_jax.state import model_arrays, split_model
from tests.support.parity import trees
from tests.support.parity.handover import (
    TorchRun,
    batch,
    rate,
    rates_are_set_later,
    schedule,
    toy,
    worst,
)
from tests.support.profiles import examples

pytestmark = pytest.mark.usefixtures("x64")


Made = tuple[Any, optax.GradientTransformation]

NOT_COMPARED = pytest.mark.filterwarnings("ignore:optax's state does not tell its rule")


def decayed(params: Any) -> Any:
    """As `TorchRun` decays: the matrices."""
    return jax.tree.map(lambda x: x.ndim > 1, params)


def nnx_optimizer(model: nnx.Module) -> Made:
    tx = optax.adamw(rate(3), weight_decay=0.1, mask=decayed)
    return nnx.Optimizer(model, tx, wrt=nnx.Param).opt_state, tx


def partitioned(model: nnx.Module) -> Made:
    one = optax.adamw(rate(3), weight_decay=0.1, mask=decayed)
    params = split_model(model)[1]
    parts = {name: "a" if "conv" in name else "b" for name in params}
    tx = optax.multi_transform({"a": one, "b": optax.chain(optax.clip(1.0), one)}, parts)
    return tx.init(params), tx


def injected(model: nnx.Module) -> Made:
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    tx = optax.inject_hyperparams(optax.adamw, static_args="mask")(learning_rate=0.5, weight_decay=0.3, mask=decayed)
    return tx.init(params), tx


def injected_schedule(model: nnx.Module) -> Made:
    tx = optax.inject_hyperparams(optax.adamw, static_args="mask")(
        learning_rate=schedule, weight_decay=0.1, mask=decayed
    )
    return tx.init(split_model(model)[1]), tx


@pytest.mark.parametrize("make", [nnx_optimizer, partitioned, injected, injected_schedule])
def test_any_tree_of_states(make: Callable[[nnx.Module], Made]):
    """NNX states, partitions with their masks, and injected hyperparameters, there and back."""
    torch_model, jax_model, ledger = toy()
    run = TorchRun(torch_model, "adamw").go(0, 3)
    template, tx = make(jax_model)
    state = optimizer_to_jax(run.optimizer, run.model, template, ledger, tx=tx)
    assert jax.tree.structure(state) == jax.tree.structure(template)
    counts = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state) if "count" in str(path)]
    assert counts
    assert {int(count) for count in counts} == {3}
    fresh = TorchRun(torch_model, "adamw")
    with rates_are_set_later():
        assert optimizer_to_torch(state, ledger, fresh.model, fresh.optimizer, tx=tx) == 3
    for ours, theirs in zip(run.model.parameters(), fresh.model.parameters(), strict=True):
        for key, value in run.optimizer.state[ours].items():
            assert torch.equal(value, fresh.optimizer.state[theirs][key])


@NOT_COMPARED
@examples(15)
@given(trees.TREES, st.sampled_from((torch.optim.AdamW, torch.optim.SGD)), st.integers(0, 2**31), st.integers(1, 9))
def test_the_memory_of_any_tree_of_modules(tree: trees.Branch, kind: Any, seed: int, steps: int):
    """Random bits in every moment, there and back: of stacks, attention, scalars and empty tensors too."""
    torch_model, jax_model = trees.torch_tree(tree), trees.flax_tree(tree)
    hypothesis.assume(list(torch_model.parameters()))
    ledger = torch_to_jax(torch_model, jax_model, rules=trees.tree_rules(tree))
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    ours, again = (kind(torch_model.parameters(), lr=0.1, **options) for _ in range(2))
    draw = np.random.RandomState(seed)
    slots = ("momentum_buffer",) if options else ("exp_avg", "exp_avg_sq")
    for parameter in torch_model.parameters():
        shape = tuple(parameter.shape)
        moments = {slot: to_tensor(trees.random_bits(shape, np.dtype(np.float32), draw)) for slot in slots}
        ours.state[parameter] = moments if options else {"step": torch.tensor(float(steps)), **moments}
    tx = optax.trace(0.9) if options else optax.scale_by_adam()
    # Random bits: infinities too, of which no step can be compared.
    state = optimizer_to_jax(ours, torch_model, tx.init(nnx.state(jax_model, nnx.Param)), ledger)
    assert optimizer_to_torch(state, ledger, torch_model, again) == (None if options else steps)
    for parameter, kept in ours.state.items():
        found = again.state[parameter]
        assert found.keys() == kept.keys()
        for key, value in kept.items():
            assert to_numpy(found[key]).tobytes() == to_numpy(value).tobytes(), key
            assert found[key].shape == value.shape


def test_injected_hyperparameters_are_carried():
    torch_model, jax_model, ledger = toy()
    run = TorchRun(torch_model, "adamw").go(0, 3)
    template, tx = injected(jax_model)
    state = optimizer_to_jax(run.optimizer, run.model, template, ledger, tx=tx)
    assert float(state.hyperparams["learning_rate"]) == rate(3)
    assert float(state.hyperparams["weight_decay"]) == 0.1
    state.hyperparams["b1"] = jnp.asarray(0.7)
    state.hyperparams["weight_decay"] = jnp.asarray(0.25)
    optimizer_to_torch(state, ledger, run.model, run.optimizer, tx=tx)
    assert [group["weight_decay"] for group in run.optimizer.param_groups] == [0.0, 0.25]
    assert [group["betas"] for group in run.optimizer.param_groups] == [(0.7, 0.999)] * 2
    state.hyperparams["eps_root"] = jnp.asarray(1e-3)
    with pytest.raises(ValueError, match="eps_root has no place"):
        optimizer_to_torch(state, ledger, run.model, run.optimizer)
    run.optimizer.param_groups[0]["lr"] = 0.7
    with pytest.raises(ValueError, match="learning_rate differs between"):
        optimizer_to_jax(run.optimizer, run.model, injected(jax_model)[0], ledger)


def test_everything_that_has_no_partner_is_listed():
    torch_model, jax_model, ledger = toy()
    optimizer = torch.optim.AdamW(torch_model.parameters(), lr=0.1, amsgrad=True)
    torch_model(torch.from_numpy(batch(0)[0])).sum().backward()
    optimizer.step()
    optimizer.state[torch_model.conv.bias]["step"] += 1
    params = split_model(jax_model)[1]
    del params["layers.1.kernel"]
    state = optax.chain(optax.ema(0.9), optax.adam(0.1)).init({**params, "extra": jnp.ones(2)})
    with pytest.raises(ValueError, match="cannot be converted") as caught:
        optimizer_to_jax(optimizer, torch_model, state, ledger)
    message = str(caught.value)
    for part in (
        "max_exp_avg_sq of conv.weight has no partner",
        "amsgrad of layers.1.weight",
        "conv.bias 2",
        "mu of layers.1.weight in PyTorch has no partner layers.1.kernel",
        "nu of extra is not in the ledger",
        "[0].ema['conv.kernel'] of optax's state has no partner",
    ):
        assert part in message


def test_errors_leave_pytorch_as_it_was():
    torch_model, jax_model, ledger = toy()
    run, params = TorchRun(torch_model, "adamw").go(0, 2), split_model(jax_model)[1]
    state = optax.chain(optax.adam(0.1), optax.trace(0.9)).init(params)
    before = copy.deepcopy(run.optimizer.state_dict())
    with pytest.raises(ValueError, match=r"trace of conv\.kernel in JAX has no partner conv\.weight"):
        optimizer_to_torch(state, ledger, run.model, run.optimizer)
    after = run.optimizer.state_dict()
    assert all(torch.equal(before["state"][i]["exp_avg"], after["state"][i]["exp_avg"]) for i in before["state"])


def test_unequal_counts_of_optax():
    torch_model, jax_model, ledger = toy()
    adam, *rest = optax.adam(schedule).init(split_model(jax_model)[1])
    state = (adam._replace(count=jnp.asarray(4, jnp.int32)), *rest)
    run = TorchRun(torch_model, "adamw")
    with pytest.raises(ValueError, match="one count of steps is needed, optax's state has 0, 4"):
        optimizer_to_torch(state, ledger, run.model, run.optimizer)


def test_dtypes_must_agree():
    torch_model, jax_model, ledger = toy()
    state = optax.adam(0.1, mu_dtype=jnp.bfloat16).init(split_model(jax_model)[1])
    run = TorchRun(torch_model, "adamw")
    with pytest.raises(ValueError, match=r"mu of conv.bias float64 \[4\] does not fit conv.bias bfloat16 \[4\]"):
        optimizer_to_jax(run.optimizer, run.model, state, ledger)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [({"dampening": 0.1}, "conv.weight has no momentum yet"), ({}, "steps=")],
)
def test_sgd_that_optax_cannot_follow(options: dict[str, Any], complaint: str):
    torch_model, jax_model, ledger = toy()
    optimizer = torch.optim.SGD(torch_model.parameters(), lr=0.1, momentum=0.9, **options)
    state = optax.sgd(schedule, momentum=0.9).init(split_model(jax_model)[1])
    with pytest.raises(ValueError, match=complaint):
        optimizer_to_jax(optimizer, torch_model, state, ledger)


def test_sgd_without_momentum_remembers_nothing():
    torch_model, jax_model, ledger = toy()
    optimizer = torch.optim.SGD(torch_model.parameters(), lr=0.1)
    tx = optax.sgd(0.1)
    state = tx.init(split_model(jax_model)[1])
    with pytest.warns(UserWarning, match="optax keeps no moments: its rule was not compared"):
        assert optimizer_to_jax(optimizer, torch_model, state, ledger, tx=tx) == state
    with pytest.raises(ValueError, match=r"trace of conv\.kernel in JAX has no partner"):
        optimizer_to_jax(optimizer, torch_model, optax.sgd(0.1, 0.9).init(split_model(jax_model)[1]), ledger)


def test_other_optimisers_are_refused():
    torch_model, jax_model, ledger = toy()
    optimizer = torch.optim.NAdam(torch_model.parameters())
    with pytest.raises(
        ValueError, match="NAdam cannot be converted, that of Adam, AdamW, SGD, RMSprop, Adagrad, Muon can"
    ):
        optimizer_to_jax(optimizer, torch_model, optax.rmsprop(0.1).init(split_model(jax_model)[1]), ledger)


def test_averages_without_partners_are_listed():
    torch_model, jax_model, ledger = toy()
    ema, like = dict(torch_model.state_dict()), model_arrays(jax_model)
    assert worst({k: v.numpy() for k, v in ema_to_torch(nnx.state(jax_model), ledger).items()}, ema) == 0
    shift = ema.pop("shift")
    with pytest.raises(ValueError, match="average of shift in JAX has no partner"):
        ema_to_jax({**ema, "other": shift}, like, ledger)
    del like["shift"]
    with pytest.raises(ValueError, match="shift is missing; wrong is unknown"):
        ema_to_torch({**like, "wrong": jnp.ones(1)}, ledger)
