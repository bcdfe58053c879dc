"""float32 rows of numbers that float32 can hardly hold, and of small rests of large terms."""

from __future__ import annotations

import numpy as np
import pytest

from parity.judgement.rows import float32_rows, flushed
from parity.recording.capture import Call
from tests.parity.judgement.test_rows import GATES, PAIRS, ROOT, X, numbers


def test_subnormal_numbers_may_become_zero_in_float32():
    """XLA on CPU flushes them; what is a few times larger is judged as ever."""
    for size, allowed in ((1e-40, True), (1e-38, True), (1e-30, False), (1e-10, False)):
        exact = {X: Call(None, [np.full(100, size)])}
        lost = {X: Call(None, [np.zeros(100)])}
        assert float32_rows(PAIRS[:1], exact, exact, lost, "forced", GATES)[0].passed is allowed
    assert flushed([np.full(100, 1e-40)]) == pytest.approx(2**-124 / 1e-40)
    assert flushed([np.zeros(3), numbers()]) == flushed([np.ones(3)]) == 0


def test_a_number_that_is_the_small_rest_of_large_terms_is_granted_its_noise():
    exact = {ROOT: Call(None, [numbers(1)])}
    ours, theirs = ({ROOT: Call(None, [numbers(1 + e)])} for e in (1e-9, 2e-5))
    row, between = float32_rows(PAIRS[2:], exact, ours, theirs, "free", GATES, {ROOT: 1e-5})
    assert (row.gate, row.passed, between.passed) == (pytest.approx(8e-5), True, True)
    assert not float32_rows(PAIRS[2:], exact, ours, theirs, "free", GATES, {ROOT: 1e-7})[0].passed
