"""Hand-over by the public functions: k steps in one framework and the rest in the other are the whole run."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import parity
from parity.carry.convert import torch_arrays
from parity.optimizer_state.state import dotted_name
from parity.precision.wide_torch import wide

pytestmark = pytest.mark.usefixtures("x64")

K, STEPS = 4, 9
GATE = 1e-10


class TorchNet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc1 = torch.nn.Embedding(11, 6), torch.nn.Linear(6, 9)
        self.norm, self.fc2 = torch.nn.LayerNorm(9), torch.nn.Linear(9, 4)


class JaxNet(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.embed, self.fc1 = nnx.Embed(11, 6, rngs=rngs), nnx.Linear(6, 9, rngs=rngs)
        self.norm, self.fc2 = nnx.LayerNorm(9, rngs=rngs), nnx.Linear(9, 4, rngs=rngs)


Make = Callable[[torch.nn.Module], torch.optim.Optimizer]


def groups(model: torch.nn.Module, **last: Any) -> list[dict[str, Any]]:
    """Two groups: the tensors of rank 1 without decay, the others."""
    params = list(model.parameters())
    return [
        {"params": [p for p in params if p.ndim > 1], **last},
        {"params": [p for p in params if p.ndim == 1], "weight_decay": 0.0},
    ]


OPTIMIZERS: dict[str, Make] = {
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), 1e-2, weight_decay=0.1),
    "adamw in groups": lambda m: torch.optim.AdamW(groups(m, lr=3e-3, betas=(0.8, 0.95)), 1e-2, weight_decay=0.1),
    "adam": lambda m: torch.optim.Adam(m.parameters(), 1e-2, (0.85, 0.99), eps=1e-4),
    "adam with L2": lambda m: torch.optim.Adam(groups(m), 1e-2, weight_decay=0.1),
    "adam, maximize": lambda m: torch.optim.Adam(m.parameters(), 1e-2, maximize=True),
    "sgd": lambda m: torch.optim.SGD(m.parameters(), 1e-2),
    "sgd, momentum": lambda m: torch.optim.SGD(groups(m), 1e-2, momentum=0.9, weight_decay=0.1),
    "sgd, nesterov": lambda m: torch.optim.SGD(m.parameters(), 1e-2, momentum=0.9, nesterov=True),
    "sgd, dampening": lambda m: torch.optim.SGD(m.parameters(), 1e-2, momentum=0.9, dampening=0.3, weight_decay=0.1),
    "rmsprop": lambda m: torch.optim.RMSprop(m.parameters(), 1e-2, weight_decay=0.1),
    "rmsprop, centered": lambda m: torch.optim.RMSprop(m.parameters(), 1e-2, alpha=0.9, centered=True),
    "rmsprop, momentum": lambda m: torch.optim.RMSprop(groups(m), 1e-2, momentum=0.9, centered=True),
    "adagrad": lambda m: torch.optim.Adagrad(m.parameters(), 1e-1, initial_accumulator_value=0.1, eps=0),
    "adagrad, lr_decay": lambda m: torch.optim.Adagrad(
        m.parameters(), 1e-1, lr_decay=0.1, weight_decay=0.1, initial_accumulator_value=0.1, eps=0
    ),
    "muon": lambda m: torch.optim.Muon([p for p in m.parameters() if p.ndim == 2], 1e-2, nesterov=False),
    "muon, nesterov": lambda m: torch.optim.Muon(
        [p for p in m.parameters() if p.ndim == 2], 1e-2, adjust_lr_fn="match_rms_adamw"
    ),
}


def gradient(name: str, shape: tuple[int, ...], step: int) -> np.ndarray:
    """Return a gradient in PyTorch's layout."""
    return np.random.RandomState(zlib.crc32(f"{name} {step}".encode())).standard_normal(shape)


def pair() -> tuple[torch.nn.Module, Any, parity.Ledger]:
    torch.manual_seed(0)
    torch_model, jax_model = TorchNet().double(), JaxNet()
    ledger = parity.torch_to_jax(torch_model, jax_model)
    return torch_model, nnx.state(jax_model, nnx.Param), ledger


def torch_run(model: torch.nn.Module, optimizer: torch.optim.Optimizer, start: int, stop: int) -> None:
    for step in range(start, stop):
        for name, p in model.named_parameters():
            p.grad = torch.from_numpy(gradient(name, tuple(p.shape), step))
        with wide("float64"):  # Muon casts to bfloat16
            optimizer.step()


def jax_run(optimizer: parity.OptaxOptimizer, params: Any, ledger: parity.Ledger, start: int, stop: int) -> Any:
    tx, state = optimizer
    entries = {entry.jax: entry for entry in ledger}
    for step in range(start, stop):

        def given(path: Any, x: Any, step: int = step) -> Any:
            entry = entries[dotted_name(path)]
            return jax.numpy.asarray(entry.to_jax(gradient(entry.torch, entry.torch_shape, step)))

        updates, state = tx.update(jax.tree_util.tree_map_with_path(given, params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def arrays(params: Any, ledger: parity.Ledger) -> dict[str, np.ndarray]:
    leaves = {dotted_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(params)}
    return torch_arrays(ledger, leaves)


def apart(found: dict[str, np.ndarray], model: torch.nn.Module) -> float:
    """Return the largest relF of the parameters to those of a PyTorch model."""
    return max(parity.rel_f(found[name], p) for name, p in model.named_parameters())


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_there_and_back(make: Make):
    """PyTorch for 4 steps, JAX for 9, PyTorch for 3 more: at each hand-over, and at the end, as one run of PyTorch."""
    whole, _, ledger = pair()
    optimizer = make(whole)
    torch_run(whole, optimizer, 0, K)
    parity.torch_to_jax(whole, holder := JaxNet())
    handed = parity.optimizer_to_optax(optimizer, whole, start := nnx.state(holder, nnx.Param), ledger)
    found, state = jax_run(handed, start, ledger, K, STEPS)
    torch_run(whole, optimizer, K, STEPS)
    assert apart(arrays(start, ledger), whole) > 1e-4  # the steps are not small
    assert apart(arrays(found, ledger), whole) <= GATE

    other = TorchNet().double()
    other.load_state_dict({name: torch.tensor(x) for name, x in arrays(found, ledger).items()})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh = make(other)
        count = parity.optimizer_to_torch(state, fresh, other, found, ledger, tx=handed.tx, steps=STEPS)
    assert count == STEPS
    torch_run(other, fresh, STEPS, STEPS + 3)
    torch_run(whole, optimizer, STEPS, STEPS + 3)
    assert apart({name: p.detach().numpy() for name, p in other.named_parameters()}, whole) <= GATE


@pytest.mark.parametrize("make", [OPTIMIZERS["adamw in groups"], OPTIMIZERS["rmsprop, momentum"]], ids=["adamw", "rms"])
def test_without_the_state_the_runs_part(make: Make):
    """The tests above can fail."""
    whole, _, ledger = pair()
    optimizer = make(whole)
    torch_run(whole, optimizer, 0, K)
    parity.torch_to_jax(whole, holder := JaxNet())
    tx, _ = parity.optimizer_to_optax(optimizer, whole, start := nnx.state(holder, nnx.Param), ledger)
    found, _ = jax_run(parity.OptaxOptimizer(tx, tx.init(start)), start, ledger, K, STEPS)
    torch_run(whole, optimizer, K, STEPS)
    assert apart(arrays(found, ledger), whole) > 1e-4


def handed(optimizer: torch.optim.Optimizer, model: torch.nn.Module, **options: Any) -> parity.OptaxOptimizer:
    ledger = parity.torch_to_jax(model, holder := JaxNet())
    return parity.optimizer_to_optax(optimizer, model, nnx.state(holder, nnx.Param), ledger, **options)


def test_parameters_have_steps_of_their_own():
    """A group that joined later: optax counts its steps apart."""
    model, _, _ = pair()
    optimizer = torch.optim.Adam(model.fc1.parameters(), 1e-2)
    torch_run(model, optimizer, 0, 3)
    optimizer.add_param_group({"params": [*model.fc2.parameters()]})
    torch_run(model, optimizer, 3, 5)
    ledger = parity.torch_to_jax(model, holder := JaxNet())
    ours = parity.optimizer_to_optax(optimizer, model, start := nnx.state(holder, nnx.Param), ledger)
    assert set(ours.state.inner_states) == {"frozen", "group 0 at step 5", "group 1 at step 2"}
    found, _ = jax_run(ours, start, ledger, 5, 8)
    torch_run(model, optimizer, 5, 8)
    assert apart(arrays(found, ledger), model) <= GATE


def test_a_transformation_of_ones_own_has_to_take_the_same_steps():
    model, _, _ = pair()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.1)
    torch_run(model, optimizer, 0, 3)
    tx, state = handed(optimizer, model, tx=optax.adamw(1e-2, weight_decay=0.1))
    assert int(state[0].count) == 3
    with pytest.raises(ValueError, match="AdamW and optax's transformation take other steps: in step 1"):
        handed(optimizer, model, tx=optax.adamw(1e-2))
    with pytest.warns(UserWarning, match="learning rate is 0.01 in PyTorch, 0.02 in optax: set them alike"):
        handed(optimizer, model, tx=optax.adamw(2e-2, weight_decay=0.1))
    fresh = torch.optim.AdamW(model.parameters(), 1e-2, betas=(0.9, 0.99), weight_decay=0.1)
    ledger = parity.torch_to_jax(model, holder := JaxNet())
    with pytest.raises(ValueError, match="take other steps"):
        parity.optimizer_to_torch(state, fresh, model, nnx.state(holder, nnx.Param), ledger, tx=tx)
    assert not fresh.state  # nothing was changed


REFUSED: dict[str, tuple[Make, str]] = {
    "amsgrad": (lambda m: torch.optim.Adam(m.parameters(), amsgrad=True), "amsgrad=True has no equal in optax"),
    "adagrad": (lambda m: torch.optim.Adagrad(m.parameters()), "eps=1e-10 has no equal .* set eps to 0"),
    "nadam": (lambda m: torch.optim.NAdam(m.parameters()), "NAdam cannot be handed over, these optimizers"),
    "no step yet": (
        lambda m: torch.optim.SGD(m.parameters(), 0.1, 0.9, dampening=0.1),
        "PyTorch does not dampen the first gradient: take one step first",
    ),
    "other model": (lambda m: torch.optim.SGD(TorchNet().parameters(), 0.1), "updates none of params"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_equal_is_refused(make: Make, message: str):
    model, _, _ = pair()
    with pytest.raises(ValueError, match=message) as error:
        handed(make(model), model)
    assert "\n" not in str(error.value)


def test_a_scheduler_is_told_of():
    model, _, _ = pair()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 2)
    with pytest.warns(UserWarning, match="has a scheduler, optax's stays at its present value: pass learning_rate="):
        handed(optimizer, model)
