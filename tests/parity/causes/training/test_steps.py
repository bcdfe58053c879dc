"""Causes in training, against the optimisers and the normalisation of the frameworks themselves."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from parity.causes.training.steps import AdamW, optimizer_cause, series_cause, statistics_cause, travelled
from parity.causes.training.steps import _variants as variants

DRAW = np.random.RandomState(0)
SHAPES = {"kernel": (4, 3), "bias": (3,)}
START = {name: DRAW.standard_normal(shape) for name, shape in SHAPES.items()}
GRADIENTS = [{name: DRAW.standard_normal(shape) * size for name, shape in SHAPES.items()} for size in (1e-2, 1, 0.1, 3)]
MINE = AdamW(decayed=frozenset({"kernel"}), clip=0.5, ema=0.9)


@pytest.mark.parametrize("coupled", [False, True])
def test_the_reference_is_torch_s(coupled: bool) -> None:
    params = {name: torch.nn.Parameter(torch.tensor(x)) for name, x in START.items()}
    kind = torch.optim.Adam if coupled else torch.optim.AdamW
    optimizer = kind(params.values(), lr=1e-3, weight_decay=1e-2)
    for given in GRADIENTS:
        for name, p in params.items():
            p.grad = torch.tensor(given[name])
        torch.nn.utils.clip_grad_norm_(params.values(), 0.5)
        optimizer.step()
    ours = AdamW(coupled=coupled, clip=0.5).run(START, GRADIENTS)
    assert travelled({name: p.detach().numpy() for name, p in params.items()}, ours, START) < 1e-12


def test_every_switch_is_recognised_by_its_effect() -> None:
    names, vectors = frozenset(START), frozenset({"bias"})
    switches = list(variants(MINE, names, vectors))
    assert len(switches) > 30
    right = MINE.run(START, GRADIENTS)
    for switch, text, settings in switches:
        given = settings.run(START, GRADIENTS)
        if travelled(given, right, START) <= 1e-10:
            continue  # what is set already
        cause = optimizer_cause(MINE, START, GRADIENTS, given)
        assert cause is not None, text
        # Two switches may do the same, e.g. to decay only the matrices when that is what is done.
        assert cause.switch == switch, (text, cause)


def test_what_is_right_or_unknown_has_no_cause() -> None:
    right = MINE.run(START, GRADIENTS)
    assert optimizer_cause(MINE, START, GRADIENTS, right) is None
    noise = {name: x + 1e-4 * DRAW.standard_normal(x.shape) for name, x in right.items()}
    assert optimizer_cause(MINE, START, GRADIENTS, noise) is None
    odd = dataclasses.replace(MINE, lr=1.234e-3, b1=0.87).run(START, GRADIENTS)
    assert optimizer_cause(MINE, START, GRADIENTS, odd) is None


def test_series() -> None:
    wanted = np.cos(np.linspace(0, 1.5, 20))
    cases = {
        "schedule shift": np.concatenate((wanted[:1], wanted[:-1])),
        "learning rate": 0.5 * wanted,
        "schedule stretch": np.repeat(wanted, 2)[:20],
    }
    for switch, given in cases.items():
        cause = series_cause(list(wanted), list(given))
        assert cause is not None
        assert cause.switch == switch
    assert series_cause(list(wanted), list(wanted)) is None
    assert series_cause(list(wanted), list(wanted**2)) is None


def test_flax_s_running_variance_is_biased() -> None:
    x = DRAW.standard_normal((4, 3, 5, 5))
    theirs, ours = nnx.BatchNorm(3, momentum=0.9, rngs=nnx.Rngs(0)), torch.nn.BatchNorm2d(3).double()
    with jax.enable_x64(True):
        theirs.mean.set_value(jnp.zeros(3)), theirs.var.set_value(jnp.ones(3))
        theirs(jnp.asarray(x.transpose(0, 2, 3, 1)), use_running_average=False)
    ours(torch.from_numpy(x))
    given, wanted = np.asarray(theirs.var[...]), ours.running_var.numpy()
    cause = statistics_cause(np.ones(3), wanted, given, 0.1, x.size // 3)
    assert cause is not None
    assert (cause.switch, "biased (n)" in cause.description) == ("running variance", True)


def test_momentum_means_the_other_thing_in_flax() -> None:
    old, batch = np.array([0.3, -1.0]), np.array([2.0, 0.5])
    wanted, given = 0.9 * old + 0.1 * batch, 0.1 * old + 0.9 * batch
    cause = statistics_cause(old, wanted, given, 0.1, 50)
    assert cause is not None
    assert cause.switch == "batch norm momentum"
    assert statistics_cause(old, wanted, wanted, 0.1, 50) is None


VARIANCES = {"": 1.0, "unbiased (n - 1) -> biased (n)": 49 / 50, "biased (n) -> unbiased (n - 1)": 50 / 49}


@pytest.mark.parametrize("text", VARIANCES)
@pytest.mark.parametrize("weight", [0.01, 0.9, 0.0123])
def test_momentum_and_variance_are_named_together(weight: float, text: str) -> None:
    old, batch = np.array([0.3, 1.0, 2.0]), np.array([2.0, 0.5, 1.1])
    wanted, given = 0.9 * old + 0.1 * batch, (1 - weight) * old + weight * VARIANCES[text] * batch
    cause = statistics_cause(old, wanted, given, 0.1, 50)
    assert cause is not None
    assert cause.switch == ("batch norm momentum and running variance" if text else "batch norm momentum")
    assert text in cause.description


def test_one_number_fits_any_weight_and_names_none() -> None:
    old, batch = np.array([0.3]), np.array([2.0])
    wanted, given = 0.9 * old + 0.1 * batch, 0.7654 * old + 0.2346 * batch
    assert statistics_cause(old, wanted, given, 0.1, 50) is None
