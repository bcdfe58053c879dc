"""The loss of right ports passes for every shape of the output and every draw; a wrong one's does not."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from parity.judgement.loss_gate import loss_error, loss_rows, loss_scale
from parity.judgement.rows import gradient_rows
from parity.measure.gates import Gates
from parity.runs.losses import cross_entropy, default_loss, projection
from parity.runs.torch_side import Gradients

GATES, INF = Gates(), math.inf


def numbers(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)


LOUD = Gradients(-2.0, {"w": numbers(3, 4)}, [], {}, [(numbers(3, -4), numbers(2, 2))])


def test_the_loss_is_judged_by_the_size_of_its_terms():
    """L = -2 is the small rest of terms of 6 and -8: an error of 14e-13 is one of 1e-13."""
    assert loss_scale(LOUD) == 14
    assert loss_scale(dataclasses.replace(LOUD, loss=20.0)) == 20
    assert loss_scale(dataclasses.replace(LOUD, outputs=[(numbers(INF, 1), numbers(1, 5))])) == 5
    loss = gradient_rows(LOUD, dataclasses.replace(LOUD, loss=-2 + 7e-13), GATES)[0]
    assert (loss.error, loss.gate, loss.passed) == (pytest.approx(0.5e-13, rel=1e-2), 1e-13, True)
    assert not gradient_rows(LOUD, dataclasses.replace(LOUD, loss=-2 + 1e-11), GATES)[0].passed


def test_in_float32_the_loss_may_stray_as_the_outputs_do():
    """PyTorch's outputs stray by 1e-5, and its loss by nothing, by chance: g d = (2e-5 * 3, 2e-5 * -4) cancels."""
    ours = dataclasses.replace(LOUD, outputs=[(numbers(3, -4) * (1 + 1e-5), numbers(2, 2))])
    row, between = loss_rows(LOUD, ours, dataclasses.replace(LOUD, loss=-2 + 1e-4), GATES, "free")
    spread = 1e-5 * math.hypot(6, 8) / 14
    assert (row.error, row.torch_error) == (pytest.approx(1e-4 / 14), 0.0)
    assert row.gate == pytest.approx(8 * spread, rel=1e-3)
    assert (between.gate, row.passed, between.passed) == (pytest.approx(8 * spread, rel=1e-3), True, True)
    exact, _ = loss_rows(LOUD, LOUD, dataclasses.replace(LOUD, loss=-2 + 1e-4), GATES, "free")
    assert (exact.gate, exact.passed) == (2**-22, False)


def run(loss, outputs: list[np.ndarray]) -> Gradients:
    """The loss of these outputs in PyTorch, in their precision."""
    leaves = [torch.from_numpy(x).requires_grad_() for x in outputs]
    value = loss.torch(leaves[0] if len(leaves) == 1 else tuple(leaves))
    value.backward()
    found = [(x, leaf.grad.numpy()) for x, leaf in zip(outputs, leaves, strict=True)]
    return Gradients(float(value.detach()), {}, [], {}, found)


def linear(draw: np.random.RandomState, inputs: int, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """The outputs of a linear layer: exact, summed by PyTorch in float32, and left to right (as XLA does)."""
    x, w = draw.standard_normal((*shape[:-1], inputs)), draw.standard_normal((inputs, shape[-1])) / np.sqrt(inputs)
    x32, w32 = x.astype(np.float32), w.astype(np.float32)
    exact = x32.astype(float) @ w32.astype(float)
    ours = (torch.from_numpy(x32) @ torch.from_numpy(w32)).numpy()
    total = np.zeros(shape, np.float32)
    for i in range(inputs):
        total = (total + x32[..., i : i + 1].astype(float) * w32[i]).astype(np.float32)
    return exact, ours, total


@pytest.mark.parametrize("seed", range(200))
def test_a_right_port_passes_whatever_the_shape_of_its_output(seed: int):
    """The gate that held the loss to 1e-6 of itself failed 38 of 200 such draws."""
    draw = np.random.RandomState(seed)
    shape = tuple(int(draw.choice((1, 2, 3, 5, 16, 40))) for _ in range(draw.randint(1, 5)))
    exact, ours, theirs = linear(draw, int(draw.randint(4, 65)), shape)
    for loss in (default_loss([shape], [None]), projection()):
        oracle = run(loss, [exact])
        rows = loss_rows(oracle, run(loss, [ours]), run(loss, [theirs]), GATES, "free")
        assert all(row.passed for row in rows), rows


@pytest.mark.parametrize("shape", [(1,), (3, 1), (2, 7, 5), (2, 3, 4, 5)])
def test_the_default_loss_in_jax_errs_by_rounding_of_its_terms(shape: tuple[int, ...]):
    loss, (exact, ours, theirs) = default_loss([shape], [None]), linear(np.random.RandomState(0), 16, shape)
    oracle = run(loss, [exact])
    given = dataclasses.replace(oracle, loss=float(jax.jit(loss.jax)(jnp.asarray(theirs))))
    assert all(row.passed for row in loss_rows(oracle, run(loss, [ours]), given, GATES, "free"))
    with jax.enable_x64(True):
        double = float(jax.jit(loss.jax)(jnp.asarray(exact)))
    assert loss_error(dataclasses.replace(oracle, loss=double), oracle) < 1e-15


@pytest.mark.parametrize("seed", range(20))
def test_a_wrong_loss_fails(seed: int):
    """Another smoothing, other labels."""
    draw = np.random.RandomState(seed)
    logits, labels = draw.standard_normal((6, 5)), draw.randint(0, 5, 6)
    oracle = run(cross_entropy(labels), [logits])
    for other in (cross_entropy(labels, 0.11), cross_entropy(np.roll(labels, 1), 0.1)):
        theirs = run(other, [logits])
        assert not gradient_rows(oracle, theirs, GATES)[0].passed
        assert not any(row.passed for row in loss_rows(oracle, oracle, theirs, GATES, "free"))
