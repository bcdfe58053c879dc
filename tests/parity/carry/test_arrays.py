"""Numbers in another dtype: rounded within the range, never wrapped, never without a part."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parity.carry.arrays import converted, numpy_dtype, same_numbers, to_numpy, to_tensor

REFUSED: list[tuple[Any, Any, Any, str]] = [
    (2**33 + 5, np.int64, np.int32, "8589934597 does not fit int32"),
    (-1, np.int64, np.uint64, "-1 does not fit uint64"),
    (2**64 - 1, np.uint64, np.int64, "18446744073709551615 does not fit int64"),
    (2**63 - 1, np.int64, np.float64, "9223372036854775807 does not fit float64"),
    (2**64 - 1, np.uint64, np.float32, "18446744073709551615 does not fit float32"),
    (2**24 + 1, np.int32, np.float32, "16777217 does not fit float32"),
    (257, np.int64, ml_dtypes.bfloat16, "257 does not fit bfloat16"),
    (2.5, np.float32, np.int32, "2.5 does not fit int32"),
    (2.0**63, np.float64, np.int64, "9.223372036854776e[+]18 does not fit int64"),
    (-1.0, np.float64, np.uint8, "-1.0 does not fit uint8"),
    (np.nan, np.float32, np.int8, "nan does not fit int8"),
    (np.inf, np.float32, np.int64, "inf does not fit int64"),
    (1e300, np.float64, np.float32, "1e[+]300 does not fit float32"),
    (1e5, np.float32, np.float16, "100000.0 does not fit float16"),
    (500.0, np.float32, ml_dtypes.float8_e4m3fn, "500.0 does not fit float8_e4m3fn"),
    (np.inf, np.float32, ml_dtypes.float8_e4m3fn, "inf does not fit float8_e4m3fn"),
    (1j, np.complex64, np.float32, "complex numbers do not fit float32, which is real"),
    (1e300j, np.complex128, np.complex64, "does not fit complex64"),
    (2, np.int64, np.bool_, "2 does not fit bool"),
    (0.5, np.float32, np.bool_, "0.5 does not fit bool"),
    (2**24 + 1, np.int64, np.complex64, "16777217 does not fit complex64"),
]


@pytest.mark.parametrize(("value", "source", "target", "message"), REFUSED)
def test_what_does_not_fit_is_refused(value: Any, source: Any, target: Any, message: str):
    array = np.zeros((2, 2), source)
    array[1, 0] = value
    with pytest.raises(ValueError, match=message):
        converted(array, target)


@pytest.mark.parametrize(
    ("values", "source", "target"),
    [
        ([2**31 - 1, -(2**31)], np.int64, np.int32),
        ([2**53, -(2**63)], np.int64, np.float64),
        ([2**63], np.uint64, np.float64),
        ([2**40, 3.0], np.float64, np.int64),
        ([True, False], np.bool_, np.float32),
        ([0, 1], np.int64, np.bool_),
        ([np.nan, np.inf, -np.inf, -0.0, 1e-46], np.float64, np.float32),
        ([1 / 3], np.float64, ml_dtypes.bfloat16),
        ([1 / 3], np.float64, np.complex64),
        ([1j / 3], np.complex128, np.complex64),
        ([], np.int64, np.int8),
    ],
)
def test_what_fits_is_converted_as_numpy_does(values: list[Any], source: Any, target: Any):
    array = np.array(values, source)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(converted(array, target), array.astype(target), strict=True)


@given(st.integers(-(2**63), 2**63 - 1))
def test_an_integer_is_its_own_value_in_any_type_or_refused(value: int):
    for target in (np.int8, np.uint16, np.int32, np.uint64, np.float16, np.float32, np.float64):
        try:
            found = converted(np.array([value]), target)[0]
        except ValueError:
            with np.errstate(all="ignore"):
                assert not np.isfinite(x := np.array([value]).astype(target)[0]) or int(x) != value
        else:
            assert int(found) == value


def test_integers_are_compared_by_their_value():
    a = np.array([1, 2])
    assert same_numbers(a, a.astype(np.int32))
    assert not same_numbers(np.array([2**32 + 1, 2]), a.astype(np.int32))
    assert not same_numbers(np.array([-1]), np.array([2**64 - 1], np.uint64))
    assert not same_numbers(a, a.astype(np.float32))
    assert not same_numbers(a == 1, np.array([1, 0]))
    assert not same_numbers(a, a[:1])


def test_conjugated_and_negated_views_are_written_out():
    z = torch.randn(3, dtype=torch.complex64)
    np.testing.assert_array_equal(to_numpy(z.conj()), np.conj(to_numpy(z)))
    np.testing.assert_array_equal(to_numpy(z.conj().imag), -to_numpy(z).imag)
    np.testing.assert_array_equal(to_numpy(torch._neg_view(torch.ones(2, dtype=torch.bfloat16))), [-1, -1])
    assert torch.equal(to_tensor(to_numpy(z)), z)


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_types_of_one_framework_alone_have_a_name():
    with pytest.raises(ValueError, match="PyTorch has no int4"):
        to_tensor(np.zeros(2, ml_dtypes.int4))
    with pytest.raises(ValueError, match="PyTorch has no float8_e3m4"):
        to_tensor(np.zeros(2, ml_dtypes.float8_e3m4))
    with pytest.raises(ValueError, match="numpy has no complex32"):
        numpy_dtype(torch.zeros(2, dtype=torch.complex32))
