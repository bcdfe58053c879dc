"""The measure: what it sees that others miss, and what it refuses."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parity import Gates, Row, rel_f
from parity.measure.gates import norm, relative
from tests.support.parity.pairs import images

INF, NAN = float("inf"), float("nan")


def test_rel_f_by_hand():
    assert rel_f([3.0, 4.0], [3.0, 0.0]) == pytest.approx(4 / 3)
    assert rel_f(images(3, 4), images(3, 4)) == 0


@given(st.integers(-130, 130), st.integers(0, 11))
def test_rel_f_has_no_scale_and_sees_one_element(exponent: int, place: int):
    a = images(12) * 10.0**exponent
    b = a.copy()
    b[place] *= 1 + 1e-9
    expected = 1e-9 * abs(a[place]) / norm(b / 10.0**exponent) / 10.0**exponent
    assert rel_f(a, b) == pytest.approx(expected, rel=1e-4)


def test_errors_of_opposite_sign_do_not_cancel():
    assert rel_f([2.0, 0.0], [1.0, 1.0]) == 1


def test_frameworks_mix():
    x = images(3).astype(np.float32)
    for a in (x, torch.from_numpy(x), jnp.asarray(x)):
        assert rel_f(a, x) == 0
    assert rel_f(torch.ones(2, dtype=torch.bfloat16), np.ones(2)) == 0


def test_zeros():
    assert rel_f([0.0], [0.0]) == 0
    assert rel_f([1e-300], [0.0]) == INF
    assert rel_f([1.0], [0.0]) == INF
    assert rel_f([1.0], [1e-200]) > 1e100
    assert relative(0.0, 0.0) == 0
    assert relative(1.0, 0.0) == INF
    assert relative(1.0, 0.5) == 2


def test_only_what_is_equal_everywhere_has_no_error():
    assert rel_f([1.0, NAN, INF], [1.0, NAN, INF]) == 0
    assert 0 < rel_f([1e300, 1e-300], [1e300, 0.0]) < 1e-300  # its square, and the quotient, are too small for float64


@pytest.mark.parametrize(
    ("value", "reference", "expected"),
    [
        ([1.0, NAN], [1.0, 1.0], INF),
        ([1.0, 1.0], [1.0, NAN], INF),
        ([1.0, INF], [1.0, 1.0], INF),
        ([1.0, INF], [1.0, -INF], INF),
        ([1.0, INF], [1.0, NAN], INF),
        ([2.0, INF, NAN], [1.0, INF, NAN], 1.0),
        ([1e300, 1e300], [1e300, 1e300], 0.0),
        ([2e300], [1e300], 1.0),
        ([1e300, 1.0], [-1e300, 1.0], 2.0),
        ([1.7e308], [-1.7e308], 2.0),  # their difference is beyond float64
        ([1e-200], [1.0], 1.0),
        ([3e-200], [1e-200], 2.0),
    ],
)
def test_what_is_not_finite(value: list[float], reference: list[float], expected: float):
    assert rel_f(value, reference) == pytest.approx(expected)


def test_nothing_to_compare_is_an_error():
    with pytest.raises(ValueError, match=r"^nothing to compare: the tensors are empty$"):
        rel_f(np.zeros((0, 3)), np.zeros((0, 3)))
    with pytest.raises(ValueError, match=r"^shapes differ: \(3,\) and \(3, 1\)$"):
        rel_f(np.zeros(3), np.zeros((3, 1)))


@pytest.mark.parametrize("same", [[NAN, NAN], [INF, INF], [-INF, NAN], [complex(NAN, INF)]])
def test_without_a_finite_number_there_is_nothing_to_compare(same: list[float]):
    assert rel_f(same, same) == INF


@given(st.lists(st.complex_numbers(max_magnitude=1e100), min_size=1, max_size=5))
def test_a_complex_number_is_two_real_ones(numbers: list[complex]):
    b = np.array(numbers)
    a = b * (1 + 1e-3j)
    parts = [np.stack([x.real, x.imag]) for x in (a, b)]
    assert rel_f(a, b) == pytest.approx(rel_f(*parts), rel=1e-12)
    assert norm(b) == pytest.approx(norm(parts[1]), rel=1e-12)


@pytest.mark.parametrize(
    ("value", "reference", "expected"),
    [
        ([1 - 1j], [1 + 1j], math.sqrt(2)),  # conjugated
        ([1.0], [1 + 1j], math.sqrt(0.5)),  # the imaginary part dropped
        ([1 + 1j], [1.0], 1.0),
        ([complex(1, NAN)], [complex(1, NAN)], 0.0),
        ([complex(2, NAN)], [complex(1, NAN)], 1.0),
        ([complex(1, NAN)], [complex(1, 1)], INF),
        ([complex(INF, 1)], [complex(INF, 1)], 0.0),
        ([complex(0, 1e300)], [complex(0, -1e300)], 2.0),
    ],
)
def test_complex_numbers(value: list[complex], reference: list[complex], expected: float):
    assert rel_f(value, reference) == pytest.approx(expected)


def test_norm_is_frobenius():
    x = images(5, 6, 7)
    assert norm(x) == pytest.approx(np.linalg.norm(x), rel=1e-14)
    assert norm(np.array([1e200])) == INF  # rel_f knows what to do
    assert norm(x.astype(np.float32).T) == pytest.approx(np.linalg.norm(x.astype(np.float32)), rel=1e-6)


@pytest.mark.parametrize(
    ("error", "note", "passed"),
    [
        (0.0, "", True),
        (1e-13, "", True),
        (1.1e-13, "", False),
        (INF, "", False),
        (NAN, "", False),
        (0.0, "leak", False),
    ],
)
def test_a_row_passes_within_its_gate_and_without_a_note(error: float, note: str, passed: bool):
    assert Row("a", "layer", "free", "float64", error, 1e-13, note=note).passed is passed


def test_the_gates_are_those_of_the_docs():
    gates = Gates()
    assert (gates.f64, gates.f64_gradient) == (1e-13, 1e-12)
    assert (gates.f32_ratio, gates.f32_floor, gates.f32_gradient_floor) == (3.0, 2**-22, 2**-21)
    assert (gates.f32_between, gates.f32_logits, gates.f32_loss) == (1e-5, 3e-6, 1e-6)
    assert not math.isinf(max(vars(gates).values()))


def test_the_float32_gate_of_many_numbers_is_three_times_the_reference_and_four_roundings():
    gates = Gates()
    assert gates.float32(2e-7, 35, 1e-5) == 6e-7 + 2**-22
    assert gates.float32(2e-7, 35, 1e-5, floor=gates.f32_gradient_floor) == 6e-7 + 2**-21
    assert gates.float32(1.0, 1, 1e-5) == 3.0 + 2**-22  # the limit never tightens
    assert Gates(f32_floor=0.0).float32(0.0, 1000, 1e-5) == 0  # nothing is granted for no sum
    assert gates.float32(1e-9, 4, 1e-5) == pytest.approx(2 * 10**1.5 * 1e-9 + 2**-22, rel=1e-12)


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 33])
def test_the_float32_gate_of_few_numbers_covers_chance(size: int):
    """Errors of `size` independent roundings: their ratio leaves the gate's once in a million, bounded by (2 / r)^n."""
    draw = np.random.RandomState(size)
    ours, theirs = (np.linalg.norm(draw.standard_normal((100_000, size)), axis=1) for _ in range(2))
    ratio = theirs / ours
    allowed = Gates(f32_floor=0.0).float32(1e-9, size, 1.0) / 1e-9
    assert allowed == pytest.approx(max(3, 2 * 10 ** (6 / size)))
    assert (ratio > allowed).sum() <= 1
    for r in (3.0, 5.0):
        assert (ratio > r).mean() <= (2 / r) ** size
    assert Gates().float32(1e-7, size, 1e-5) <= 1e-5


@pytest.mark.parametrize("terms", [147, 384, 1152, 3136])
def test_the_float32_gate_of_a_long_sum_is_twice_that_of_adding_left_to_right(terms: int):
    """0.30 u sqrt(terms), u = 2^-24: what float32 costs where each product is added to the sum before it."""
    draw = np.random.RandomState(terms)
    x, w = (draw.standard_normal((2000, terms)).astype(np.float32) for _ in range(2))
    exact = np.einsum("nk,nk->n", x.astype(np.float64), w.astype(np.float64))
    total = np.zeros(len(x), np.float32)
    for i in range(terms):
        total = (total + x[:, i].astype(np.float64) * w[:, i]).astype(np.float32)  # a fused multiply-add
    error = rel_f(total, exact)
    assert error == pytest.approx(0.30 * math.sqrt(terms) * 2**-24, rel=0.1)
    assert Gates().float32(0.0, 2000, 1e-5, terms=terms) == max(0.6 * math.sqrt(terms) * 2**-24, 2**-22)
    assert Gates().float32(1e-7, 2000, 1e-5, terms=terms) == max(2e-7 + 0.6 * math.sqrt(terms) * 2**-24, 3e-7 + 2**-22)
    assert Gates().float32(0.0, 2000, 3e-7, terms=terms) <= 3e-7
