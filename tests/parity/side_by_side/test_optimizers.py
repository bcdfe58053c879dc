"""Losses, optimisers and averages written in both frameworks."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from parity import rel_f
from parity.side_by_side.optimizers import SwaAverage, adamw, classification


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_classification_is_the_formula_in_both(smoothing: float):
    draws = np.random.RandomState(0)
    logits, other, labels = draws.standard_normal((4, 5)), draws.standard_normal((4, 5)), np.array([0, 4, 2, 2])
    target = np.eye(5)[labels] * (1 - smoothing) + smoothing / 5

    def formula(x: np.ndarray) -> float:
        return float(-(target * (x - np.log(np.exp(x).sum(-1, keepdims=True)))).sum(-1).mean())

    loss = classification(smoothing)
    tensors = [torch.from_numpy(x) for x in (logits, other, labels)]
    assert rel_f(loss.torch(tensors[0], tensors[2]), np.array(formula(logits))) <= 1e-14
    assert rel_f(loss.jax(jnp.asarray(logits), jnp.asarray(labels)), np.array(formula(logits))) <= 1e-14
    both = np.array((formula(logits) + formula(other)) / 2)
    assert rel_f(loss.torch((tensors[0], tensors[1]), tensors[2]), both) <= 1e-14
    assert rel_f(loss.jax((jnp.asarray(logits), jnp.asarray(other)), jnp.asarray(labels)), both) <= 1e-14


def test_adamw_groups_by_shape():
    model = torch.nn.Linear(3, 2)
    optimizer, scheduler = adamw(0.1, weight_decay=0.2).torch(model)
    assert [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups] == [(1, 0.0), (1, 0.2)]
    assert scheduler is None


def test_half_a_schedule_is_refused():
    with pytest.raises(ValueError, match="both of factor"):
        adamw(0.1, factor=lambda step: 1.0)


def test_average_begins_at_the_start():
    model = torch.nn.Linear(3, 2).double()
    start, average = model.weight.detach().clone(), SwaAverage(model, 0.75)
    with torch.no_grad():
        model.weight += 1.0
    average.update(model)
    assert rel_f(average.state["weight"], start + 0.25) <= 1e-15
