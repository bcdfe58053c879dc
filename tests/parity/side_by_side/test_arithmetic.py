"""PyTorch's optimizers written out in numpy take the steps of `torch.optim`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from parity.side_by_side.arithmetic import Clip, Options, Rule

SHAPES = {"weight": (4, 3), "bias": (4,)}
STEPS = 6

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, (0.8, 0.95), eps=1e-4, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, 1e-2, weight_decay=0.1, maximize=True),
    "amsgrad": lambda p: torch.optim.Adam(p, 1e-2, (0.9, 0.5), amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, 1e-2),
    "momentum": lambda p: torch.optim.SGD(p, 1e-2, 0.9, dampening=0.3, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, 1e-2, 0.9, nesterov=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-2, 0.9, weight_decay=0.1),
    "centered": lambda p: torch.optim.RMSprop(p, 1e-2, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 1e-2, 0.1, 0.1, initial_accumulator_value=0.5, eps=1e-3),
}


def draw(step: int) -> dict[str, np.ndarray]:
    random = np.random.RandomState(step)
    return {name: random.standard_normal(shape) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_steps_are_pytorchs(make: Callable[[Any], torch.optim.Optimizer]):
    tensors = {name: torch.nn.Parameter(torch.tensor(x)) for name, x in draw(99).items()}
    optimizer = make(list(tensors.values()))
    (group,) = optimizer.param_groups
    options = Options.of(type(optimizer), group)
    assert options is not None
    rule, state = Rule(dict.fromkeys(tensors, options)), {}
    for step in range(STEPS):
        before = {name: p.detach().numpy().copy() for name, p in tensors.items()}
        for name, g in draw(step).items():
            tensors[name].grad = torch.tensor(g)
        optimizer.step()
        change = rule.step(before, [draw(step)], dict.fromkeys(tensors, group["lr"]), frozenset(), state)
        for name, p in tensors.items():
            np.testing.assert_allclose(before[name] + change[name], p.detach().numpy(), rtol=1e-12)


def test_an_optimizer_that_is_not_written_out():
    optimizer = torch.optim.NAdam([torch.nn.Parameter(torch.zeros(2))])
    assert Options.of(type(optimizer), optimizer.param_groups[0]) is None


@pytest.mark.parametrize(
    ("clip", "torchs"),
    [
        (Clip("norm", 0.7), lambda p: torch.nn.utils.clip_grad_norm_(p, 0.7)),
        (Clip("value", 0.4), lambda p: torch.nn.utils.clip_grad_value_(p, 0.4)),
        (Clip(), lambda p: None),
    ],
)
def test_gradients_are_clipped_as_in_pytorch(clip: Clip, torchs: Callable[[Any], Any]):
    tensors = {name: torch.nn.Parameter(torch.tensor(x)) for name, x in draw(0).items()}
    for name, g in draw(1).items():
        tensors[name].grad = torch.tensor(g)
    torchs(list(tensors.values()))
    for name, g in clip(draw(1)).items():
        np.testing.assert_allclose(g, tensors[name].grad.numpy(), rtol=1e-14)


def test_gradients_of_several_batches():
    a, b = draw(0), draw(1)
    options = {name: Options("sgd") for name in SHAPES}
    for reduction, wanted in (
        ("mean", 0.5 * (a["bias"] + b["bias"])),
        ("sum", a["bias"] + b["bias"]),
        ("last", b["bias"]),
    ):
        np.testing.assert_allclose(Rule(options, reduction=reduction).gradients([a, b])["bias"], wanted)


def test_parameters_without_a_gradient_are_skipped():
    options = {name: Options("adam", decay=0.1, decoupled=True) for name in SHAPES}
    for skips in (True, False):
        change = Rule(options, skips=skips).step(
            draw(0), [draw(1) | {"bias": np.zeros(4)}], dict.fromkeys(SHAPES, 0.1), frozenset({"bias"}), {}
        )
        assert change["bias"].any() != skips
