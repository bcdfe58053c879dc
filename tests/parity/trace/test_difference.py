"""A difference says which value of JAX stands for a result, and at which lines it is computed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import parity
from parity.trace.difference import sources
from parity.trace.locate import Located, locate
from parity.trace.values.program import traced
from parity.trace.values.torch_operations import trace_torch
from tests.support.parity.traced import planted


def located(**wrong: str) -> Located:
    sides = planted(**wrong)
    trace, program = trace_torch(sides.ours, sides.arrays), traced(sides.theirs, sides.arrays)
    with sides.theirs.switches():
        return locate(sides.ours, sides.arrays, trace, program)


def test_the_best_candidate_is_a_value_behind_what_is_known():
    (difference,) = located(block1="gelu").differences
    (end,) = difference.region.ends
    best = difference.best(end)
    assert best is not None
    assert 0 < best.error < 0.1
    assert not difference.region.known.isdisjoint(sources(difference.matches, {best.number}))
    assert best.number not in difference.region.known


def test_sources_end_at_the_inputs():
    first = located(block1="gelu").first
    last = len(first.inputs) - 1
    found = sources(first, {last})
    assert last in found
    assert all(first.inputs[number] <= found for number in found)


class TwoLayers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.head = torch.nn.Linear(4, 6), torch.nn.LayerNorm(6), torch.nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.fc1(x)
        normed = self.norm(y)
        return self.head(normed), normed


def head_without_norm(p: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    y = x @ p["fc1"]["w"] + p["fc1"]["b"][None]
    mean, variance = y.mean(-1, keepdims=True), y.var(-1, keepdims=True)
    normed = (y - mean) / jnp.sqrt(variance + 1e-5) * p["norm"]["w"][None] + p["norm"]["b"][None]
    return y @ p["head"]["w"] + p["head"]["b"][None], normed


def test_a_module_that_is_given_another_value_is_not_wrong_itself():
    model = TwoLayers()
    parity.randomize(model)
    weights = {
        name: {"w": np.asarray(layer.weight.detach()).T, "b": np.asarray(layer.bias.detach())}
        for name, layer in model.named_children()
    }
    report = parity.check(
        model, parity.function(head_without_norm, weights), np.random.RandomState(0).randn(5, 4), level="forward"
    )
    (row,) = [row for row in report.failures if row.mode == "forced"]
    assert (row.name, row.kind) == ("head", "calls")
    assert "another value is given to addmm" in row.note
    assert report.first_divergence == "the model"
