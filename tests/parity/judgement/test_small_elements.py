"""Small elements beside huge ones: an error of 1e-5 is seen in them, rounding and cancellation are none."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from parity.judgement.small_elements import (
    FLOOR,
    Small,
    is_small,
    small,
    small_gradients,
    small_ones,
    with_error,
    with_small_gradients,
)
from parity.measure.gates import Gates, Row, rel_f
from parity.recording.capture import Call
from parity.runs.torch_side import Gradients

MASKS = [-1e12, -1e18, 1e30, float(np.finfo(np.float32).min), float(np.finfo(np.float64).min)]
SEEDS = range(20)


def logits(seed: int, mask: float, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Attention scores, and where they are masked."""
    draw = np.random.RandomState(seed)
    scores = draw.standard_normal((3, 16, 16)) * draw.choice((0.3, 3.0, 30.0))
    masked = draw.random_sample(scores.shape) < share
    masked.flat[draw.randint(masked.size)] = True
    return np.where(masked, mask, scores), masked


def rounded(array: np.ndarray, seed: int, unit: float) -> np.ndarray:
    """Every number changed by a few units of rounding."""
    draw = np.random.RandomState(seed + 1000)
    with np.errstate(over="ignore"):
        found = array * (1 + 3 * unit * draw.standard_normal(array.shape))
    return np.where(np.isfinite(found), found, array)


def error(value: np.ndarray, reference: np.ndarray, *draws: np.ndarray) -> float:
    own = small(reference, 1e-13)
    return 0.0 if own is None else own.known(draws).error(value)[0]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("mask", MASKS)
def test_an_error_beside_masked_logits_is_seen(mask: float, share: float):
    for seed in SEEDS:
        b, masked = logits(seed, mask, share)
        draws = rounded(b, seed, 2**-24), rounded(b, seed + 1, 2**-24)
        scores = np.where(masked, 1, b)
        wrong = np.where(masked, b, scores * (1 + 1e-5))
        assert rel_f(wrong, b) < 1e-13
        assert error(wrong, b, *draws) > 1e-7
        assert error(rounded(b, seed + 2, 2**-53), b, *draws) < 1e-14
        one = b.copy()
        one.flat[np.argmax(np.where(masked, 0, np.abs(b)))] *= 1 + 1e-5
        assert error(one, b, *draws) > 1e-8
        assert error(np.where(masked, b, -b), b, *draws) > 0.1


@pytest.mark.parametrize("seed", SEEDS)
def test_the_small_rest_of_large_terms_is_no_error(seed: int):
    """Sums of terms of size 1e4 beside an exploding one: their roundings are far above 1e-10 of what is left."""
    draw = np.random.RandomState(seed)
    x, w = draw.standard_normal((40, 64)), draw.standard_normal((64, 8))
    x[:, 32:], w[32:] = x[:, :32], -w[:32]  # all terms cancel but for what is added
    bias = np.array([1e12, *draw.standard_normal(7)]) * 1e-9

    def layer(dtype: torch.dtype, order: np.ndarray, moved: float = 0.0) -> np.ndarray:
        perturbed_run = x * (1 + moved * np.sign(np.sin(np.arange(x.size)).reshape(x.shape)))
        total = torch.zeros((40, 8), dtype=dtype)
        for i in order:
            total += 1e4 * torch.tensor(perturbed_run[:, i : i + 1], dtype=dtype) * torch.tensor(w[i], dtype=dtype)
        return (total + torch.tensor(bias, dtype=dtype) * 1e9).double().numpy()

    there, back = np.arange(64), draw.permutation(64)
    b, a = layer(torch.float64, there), layer(torch.float64, back)
    draws = layer(torch.float32, there), layer(torch.float64, there, 2**-24)
    assert rel_f(a, b) < 1e-13
    assert error(a, b, *draws) < 1e-12


@pytest.mark.parametrize("seed", SEEDS)
def test_tails_of_functions_are_no_error(seed: int):
    """log(1 + exp(x)), 1 - tanh(x) ... are right to 1e-16 of 1, not of themselves."""
    x = np.random.RandomState(seed).standard_normal((500, 200)) * 12
    x[0, 0] = 1e6
    for right, port in (
        (np.logaddexp(0, x), np.where(x > 30, x, np.log(1 + np.exp(np.minimum(x, 30))))),
        (np.exp(-np.abs(x)) + 1e4 * (x > 20), (1 - (1 - np.exp(-np.abs(x)))) + 1e4 * (x > 20)),
        (np.maximum(x, 0), np.maximum(x + 1e-16, 0)),
    ):
        single = right.astype(np.float32).astype(np.float64)
        assert error(port, right, single, right) < 1e-10


def test_one_element_of_a_usual_tensor_needs_no_band():
    b = np.random.RandomState(0).standard_normal((64, 64))
    assert small(b, 1e-13) is None
    wide = np.random.RandomState(0).standard_normal((300, 400)) * 10
    own = small(wide, 1e-13)
    assert isinstance(own, Small)
    assert own.known([rounded(wide, 0, 2**-24) + 1e-6]).places.size == 0  # its small ones are noisy like all others


@pytest.mark.parametrize("b", [np.zeros(5), np.full(5, np.inf), np.full(5, np.nan), np.ones(3), np.full(4, 1e12)])
def test_where_nothing_is_small_there_is_nothing_to_measure(b: np.ndarray):
    assert small(b, 1e-13) is None


def test_zeros_infinities_and_nan_beside_numbers():
    b = np.array([np.inf, np.nan, -1e20, 1.0, 0.0, 2.0])
    own = small(b, 1e-13)
    assert own is not None
    assert own.places.tolist() == [3, 4, 5]
    assert own.scale.tolist() == [1, FLOOR, 2]
    wrong = b.copy()
    wrong[4] = 1e-8
    assert own.error(b)[0] == 0
    note = "in 1 element of size 1e-03, which relF does not see beside one of 1e+20"
    assert own.error(wrong) == (pytest.approx(1e-5), note)


def test_the_imaginary_part_beside_a_huge_real_one():
    b = np.array([1e20 + 1j, 2 - 1j])
    own = small(b, 1e-13)
    assert own is not None
    assert own.known([b]).error(b.conj())[0] > 1


def test_what_the_noise_hides_is_left_out():
    b = np.array([1e20, 1.0, 2.0])
    own = small(b, 1e-13)
    assert own is not None
    assert own.known([np.array([1e20, 1e10, 2.0])]).places.tolist() == [2]
    ten = np.array([1e20, *np.ones(10)])
    noisy = np.where(np.arange(11) < 3, ten, 1e10)  # the usual noise of elements of one size is that of all
    assert small(ten, 1e-13).known([noisy]).places.size == 0
    assert own.known([np.array([1e20, np.inf, np.nan])]).error(b) == (0.0, "")


def test_all_tensors_of_a_call():
    b = np.array([1e20, 1.0])
    calls = {("a", 0): Call([np.ones(2), b], [b]), ("b", 0): Call(None, [b])}
    found = small_ones(calls, [calls], 1e-13)
    assert [x is None for x in found["a", 0].inputs or []] == [True, False]
    assert found["a", 0].outputs[0].places.tolist() == found["b", 0].outputs[0].places.tolist() == [1]
    assert found["b", 0].inputs == []


def test_the_row_is_that_of_the_small_elements_only_if_they_fail():
    row = Row("a", "layer", "free", "float64", 1e-20, 1e-13)
    note = "in 1 element of size 1e+00, which relF does not see beside one of 1e+20"
    assert with_error(row, 1e-10, note) == row
    failed = with_error(row, 2e-10, note)
    assert (failed.error, failed.gate, failed.note, failed.passed) == (2e-10, 1e-10, note, False)
    assert is_small(failed)
    assert not is_small(row)


def test_an_ordinary_row_of_an_embedding_beside_one_with_a_huge_gradient():
    draw = np.random.RandomState(0)
    table = draw.standard_normal((10, 4)) * 1e-2
    table[3] *= 1e16
    wanted = Gradients(1.0, {"emb": table, "fc": draw.standard_normal((4, 4))}, [table], {})
    rows = [Row(name, "gradient", "free", "float64", 0.0, 1e-12) for name in ("emb", "fc", "input 0")]
    single = dataclasses.replace(
        wanted, params={k: rounded(g, 0, 2**-24) for k, g in wanted.params.items()}, inputs=[rounded(table, 0, 2**-24)]
    )

    def judged(factor: float) -> list[bool]:
        a = table * np.where(np.arange(10)[:, None] == 5, factor, 1)
        given = dataclasses.replace(wanted, params=wanted.params | {"emb": rounded(a, 1, 2**-53)}, inputs=[a])
        assert rel_f(given.params["emb"], table) < 1e-12
        found = with_small_gradients(rows, small_gradients(wanted, given, Gates()), [single, single])
        return [row.passed for row in found]

    assert judged(1.0) == [True, True, True]
    assert judged(1 + 1e-5) == [False, True, False]
