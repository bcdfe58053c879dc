"""Which rule an optax transformation follows is told by what it does: right pairs pass, look-alikes are refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from parity import Ledger, torch_to_jax
from parity.optimizer_state.convert import optimizer_to_jax, optimizer_to_torch
from tests.parity.carry.test_ledger import FlaxTied, TorchTied, tokens

Make = Callable[..., torch.optim.Optimizer]
ADAM, ADAMW, SGD = torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD
RATE = 1e-3


def vectors_alone(params: Any) -> Any:
    return jax.tree.map(lambda x: x.ndim == 1, params)


def matrices_alone(params: Any) -> Any:
    return jax.tree.map(lambda x: x.ndim > 1, params)


def pair() -> tuple[torch.nn.Module, Any, Ledger]:
    torch.manual_seed(0)
    torch_model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    jax_model = nnx.List([nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.Linear(3, 2, rngs=nnx.Rngs(0))])
    ledger = torch_to_jax(torch_model, jax_model)
    return torch_model, nnx.to_pure_dict(nnx.state(jax_model, nnx.Param)), ledger


def stepped(make: Make, model: torch.nn.Module, steps: int, **options: Any) -> torch.optim.Optimizer:
    optimizer = make(model.parameters(), lr=RATE, **options)
    draw = np.random.RandomState(0)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(torch.from_numpy(draw.standard_normal((5, 4)).astype("f4"))) ** 2).mean().backward()
        optimizer.step()
    return optimizer


def both_ways(make: Make, options: dict[str, Any], tx: optax.GradientTransformation, steps: int) -> None:
    """Raises ValueError if the state is refused in either direction; nothing is changed in PyTorch then."""
    model, params, ledger = pair()
    optimizer = stepped(make, model, steps, **options)
    errors = []
    try:
        state = optimizer_to_jax(optimizer, model, tx.init(params), ledger, tx=tx, steps=steps)
    except ValueError as error:
        errors.append(error)
        state = tx.init(params)
    before = copy.deepcopy(optimizer.state_dict())
    try:
        optimizer_to_torch(state, ledger, model, optimizer, tx=tx)
    except ValueError as error:
        errors.append(error)
        after = optimizer.state_dict()
        assert str(before) == str(after)
    assert len(errors) in (0, 2)
    if errors:
        raise errors[0]


DECAY = optax.add_decayed_weights(0.01)
RIGHT: dict[str, tuple[Make, dict[str, Any], optax.GradientTransformation]] = {
    "adam": (ADAM, {}, optax.adam(RATE)),
    "adamw": (ADAMW, {}, optax.adamw(RATE, weight_decay=0.01)),
    "adam that decays beside the gradient": (
        ADAM,
        {"weight_decay": 0.01, "decoupled_weight_decay": True},
        optax.adamw(RATE, weight_decay=0.01),
    ),
    "adam that decays in the gradient": (ADAM, {"weight_decay": 0.01}, optax.chain(DECAY, optax.adam(RATE))),
    "betas": (ADAM, {"betas": (0.8, 0.95), "eps": 1e-6}, optax.adam(RATE, 0.8, 0.95, 1e-6)),
    "clipped": (ADAMW, {}, optax.chain(optax.clip_by_global_norm(0.01), optax.adamw(RATE, weight_decay=0.01))),
    "injected": (ADAMW, {}, optax.inject_hyperparams(optax.adamw)(RATE, weight_decay=0.01)),
    "momentum": (SGD, {"momentum": 0.9}, optax.sgd(RATE, 0.9)),
    "nesterov": (SGD, {"momentum": 0.9, "nesterov": True}, optax.sgd(RATE, 0.9, nesterov=True)),
    "momentum that decays": (
        SGD,
        {"momentum": 0.9, "weight_decay": 0.01},
        optax.chain(DECAY, optax.clip(1.0), optax.sgd(RATE, 0.9)),
    ),
}


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("name", RIGHT)
def test_the_same_rule_is_accepted(name: str, steps: int):
    both_ways(*RIGHT[name], steps)


WRONG: dict[str, tuple[Make, dict[str, Any], optax.GradientTransformation, str]] = {
    "adamax": (ADAM, {}, optax.adamax(RATE), "moves like Adamax"),
    "nadam": (ADAM, {}, optax.nadam(RATE), r"moves like Nesterov's Adam \(nadam\)"),
    "radam": (ADAM, {}, optax.radam(RATE), "not the same rule"),
    "lamb": (ADAM, {}, optax.lamb(RATE), "not the same rule"),
    "yogi": (ADAM, {}, optax.yogi(RATE), "not the same rule"),
    "ascent": (ADAM, {}, optax.adam(-RATE), "not the same rule"),
    "amsgrad": (ADAM, {}, optax.amsgrad(RATE), "has no partner"),
    "amsgrad of PyTorch": (ADAM, {"amsgrad": True}, optax.adam(RATE), "amsgrad of"),
    "maximize": (ADAM, {"maximize": True}, optax.adam(RATE), "not the same rule"),
    "no decay": (ADAMW, {}, optax.adam(RATE), "weight_decay 0.01.* moves like Adam without weight decay"),
    "optax's own decay": (ADAMW, {}, optax.adamw(RATE), "moves like Adam with weight decay 0.0001"),
    "coupled": (ADAMW, {}, optax.chain(DECAY, optax.adam(RATE)), r"weight decay 0.01 in the gradient \(L2\)"),
    "decoupled": (ADAM, {"weight_decay": 0.01}, optax.adamw(RATE, weight_decay=0.01), r"0.01 beside the gradient"),
    "vectors do not decay": (
        ADAMW,
        {},
        optax.adamw(RATE, weight_decay=0.01, mask=matrices_alone),
        "not the same rule",
    ),
    "other betas": (ADAM, {"betas": (0.9, 0.95)}, optax.adam(RATE), r"betas \(0.9, 0.95\).* like Adam with b2 0.999"),
    "other eps": (ADAM, {}, optax.adam(RATE, eps=1e-6), "like Adam with eps 1e-06"),
    "eps inside": (ADAM, {}, optax.adam(RATE, eps=0.0, eps_root=1e-8), "like Adam with eps under the root"),
    "injected adamax": (ADAM, {}, optax.inject_hyperparams(optax.adamax)(RATE), "moves like Adamax"),
    "nesterov": (SGD, {"momentum": 0.9}, optax.sgd(RATE, 0.9, nesterov=True), "momentum 0.9 with Nesterov"),
    "not nesterov": (SGD, {"momentum": 0.9, "nesterov": True}, optax.sgd(RATE, 0.9), "like momentum 0.9 without"),
    "other momentum": (SGD, {"momentum": 0.9}, optax.sgd(RATE, 0.95), "like momentum 0.95"),
    "decay after the momentum": (
        SGD,
        {"momentum": 0.9, "weight_decay": 0.01},
        optax.chain(optax.trace(0.9), DECAY, optax.scale(-RATE)),
        "not the same rule",
    ),
    "one part is slower": (
        ADAM,
        {},
        optax.multi_transform({"a": optax.adam(RATE), "b": optax.adam(RATE / 10)}, {0: "a", 1: "b"}),
        "not the same rule",
    ),
}


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("name", WRONG)
def test_another_rule_is_refused_and_named(name: str, steps: int):
    make, options, tx, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        both_ways(make, options, tx, steps)


def test_groups_have_decays_of_their_own():
    model, params, ledger = pair()
    weights = [p for p in model.parameters() if p.ndim > 1]
    biases = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}]
    optimizer = ADAMW(groups, lr=RATE)
    for mask, right in ((matrices_alone, True), (vectors_alone, False)):
        tx = optax.adamw(RATE, weight_decay=0.1, mask=mask)
        if right:
            optimizer_to_jax(optimizer, model, tx.init(params), ledger, tx=tx)
        else:
            with pytest.raises(ValueError, match="not the same rule"):
                optimizer_to_jax(optimizer, model, tx.init(params), ledger, tx=tx)


def test_the_state_of_tied_and_wrapped_models():
    """PyTorch lists a tied parameter under its first name, the ledger may know the second."""
    source, model = TorchTied("head"), FlaxTied()
    ledger = torch_to_jax(source, model)
    optimizer = ADAM(source.parameters(), lr=RATE)
    source(torch.from_numpy(tokens)).sum().backward()
    optimizer.step()
    tx = optax.adam(RATE)
    state = tx.init(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    wrapped = torch.nn.DataParallel(source)
    found = optimizer_to_jax(optimizer, wrapped, state, ledger, tx=tx)
    moment = optimizer.state[source.embed.weight]["exp_avg"].clone()
    np.testing.assert_array_equal(found[0].mu["embed"]["embedding"], moment)
    optimizer.state[source.embed.weight]["exp_avg"].zero_()
    assert optimizer_to_torch(found, ledger, wrapped, optimizer, tx=tx) == 1
    assert torch.equal(optimizer.state[source.embed.weight]["exp_avg"], moment)


def test_parts_of_a_partition_are_put_together():
    model, params, ledger = pair()
    optimizer = stepped(ADAM, model, 2)
    for parts in ({0: "a", 1: "b"}, {0: {"kernel": "a", "bias": "b"}, 1: {"kernel": "b", "bias": "a"}}):
        tx = optax.multi_transform({"a": optax.adam(RATE), "b": optax.adam(RATE)}, parts)
        state = optimizer_to_jax(optimizer, model, tx.init(params), ledger, tx=tx)
        assert optimizer_to_torch(state, ledger, model, optimizer, tx=tx) == 2


def test_what_was_not_compared_is_told():
    model, params, ledger = pair()
    optimizer = stepped(ADAM, model, 2)
    adamax = optax.adamax(RATE).init(params)
    with pytest.warns(UserWarning, match="optax's state does not tell its rule .*: pass tx="):
        optimizer_to_jax(optimizer, model, adamax, ledger)
    with pytest.warns(UserWarning, match="optax's state does not tell its rule"):
        optimizer_to_torch(adamax, ledger, model, optimizer)
    tx = optax.adam(lambda step: jnp.zeros(()))
    with pytest.warns(UserWarning, match="learning rate is zero: its rule was not compared"):
        optimizer_to_jax(optimizer, model, tx.init(params), ledger, tx=tx)


def test_another_learning_rate_is_told_and_no_other_rule():
    model, params, ledger = pair()
    optimizer = stepped(ADAMW, model, 2)
    tx = optax.adamw(optax.linear_schedule(0.0, 0.01, 10), weight_decay=0.01)
    with pytest.warns(UserWarning, match=r"next step the learning rate is 0\.001 in PyTorch, 0\.002 in optax"):
        optimizer_to_jax(optimizer, model, tx.init(params), ledger, tx=tx)


def test_an_optimizer_of_flax_stands_for_its_transformation():
    model, _, ledger = pair()
    jax_model = nnx.List([nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.Linear(3, 2, rngs=nnx.Rngs(0))])
    optimizer = stepped(ADAM, model, 2)
    right, wrong = (nnx.Optimizer(jax_model, tx, wrt=nnx.Param) for tx in (optax.adam(RATE), optax.adamax(RATE)))
    optimizer_to_jax(optimizer, model, right.opt_state, ledger, tx=right)
    with pytest.raises(ValueError, match="moves like Adamax"):
        optimizer_to_jax(optimizer, model, wrong.opt_state, ledger, tx=wrong)
