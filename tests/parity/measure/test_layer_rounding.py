"""What a layer's own arithmetic costs in float32, measured, is below what `own_terms` says that it may."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from parity.judgement.rows import equally_large
from parity.measure.gates import OF_SUMS, Gates, rel_f
from parity.measure.layer_rounding import FEW, OF_XLA, own_terms

U = 2.0**-24


def test_layers_with_weights_sum_their_fan_in() -> None:
    x = np.ones((2, 12))
    assert own_terms(torch.nn.Linear(12, 3), x, x[:, :3]) == 12
    assert own_terms(torch.nn.Conv2d(4, 6, 3, groups=2), None, x) == 2 * 9
    assert own_terms(torch.nn.ReLU(), x, x) == own_terms(torch.nn.Embedding(4, 5), x, x) == 0


@pytest.mark.parametrize("function", ["tanh", "erf"])
def test_xlas_functions_err_by_no_more_than_stated(function: str) -> None:
    x = np.linspace(-6, 6, 100_001, dtype=np.float32)
    ours = getattr(torch, function)(torch.from_numpy(x).double()).numpy()
    theirs = jax.jit(jnp.tanh if function == "tanh" else jax.scipy.special.erf)(x)
    assert np.abs(np.asarray(theirs, np.float64) - ours).max() <= OF_XLA * U


def test_the_gelu_of_negative_numbers() -> None:
    x = -np.linspace(2, 4, 64, dtype=np.float32)
    module = torch.nn.GELU(approximate="tanh")
    wanted = module(torch.from_numpy(x).double()).numpy()
    given = np.asarray(jax.jit(jax.nn.gelu)(x))
    own = rel_f(module(torch.from_numpy(x)).numpy(), wanted)
    error, gates = rel_f(given, wanted), Gates()
    assert error > gates.float32(own, x.size, gates.f32_between)  # what made right ports fail
    assert error <= gates.float32(own, x.size, gates.f32_between, terms=own_terms(module, x, wanted))
    positive = np.linspace(2, 4, 64)
    assert own_terms(module, positive, module(torch.from_numpy(positive)).numpy()) < 20


NORMS = {
    "layer": (torch.nn.LayerNorm(64), (3, 64), 64),
    "group": (torch.nn.GroupNorm(2, 4), (3, 4, 50), 100),
    "instance": (torch.nn.InstanceNorm1d(4), (3, 4, 80), 80),
}


@pytest.mark.parametrize("kind", NORMS)
def test_the_mean_of_a_normalisation(kind: str) -> None:
    """k numbers around 30 with deviations of 1: the mean is 30 times what is left."""
    module, shape, k = NORMS[kind]
    x = np.random.RandomState(0).standard_normal(shape)
    assert math.sqrt(own_terms(module, x, x)) == pytest.approx(math.sqrt(k) + FEW / OF_SUMS, rel=0.1)
    assert math.sqrt(own_terms(module, x + 30, x)) == pytest.approx(math.sqrt(k) * 30, rel=0.2)


def test_a_right_layer_norm_far_from_zero_passes_and_the_fast_variance_does_not() -> None:
    x = (np.random.RandomState(0).standard_normal((8, 64)) + 30).astype(np.float32)
    module = torch.nn.LayerNorm(64)
    wanted = module.double()(torch.from_numpy(x).double()).detach().numpy()
    own = rel_f(module.float()(torch.from_numpy(x)).detach().numpy(), wanted)
    gate = Gates().float32(own, x.size, Gates().f32_between, terms=own_terms(module, x, wanted))
    errors = {
        fast: rel_f(np.asarray(nnx.LayerNorm(64, epsilon=1e-5, use_fast_variance=fast, rngs=nnx.Rngs(0))(x)), wanted)
        for fast in (False, True)
    }
    assert errors[False] <= gate < errors[True]
    assert gate <= 2 * own + OF_SUMS * math.sqrt(64 * 1000) * U + FEW * U


def test_a_few_numbers_that_carry_the_error() -> None:
    draw = np.random.RandomState(0)
    x, e = np.zeros(10_000), draw.standard_normal(10_000)
    assert equally_large([e], [x]) == pytest.approx(10_000, rel=0.1)
    e[:4] *= 1000
    assert equally_large([e], [x]) <= 12
    assert equally_large([x], [x]) == 10_000  # no error at all
    assert equally_large([np.full(5, np.nan)], [np.ones(5)]) == 5
    assert equally_large([], []) == 1
