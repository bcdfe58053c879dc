"""What a pair of models is called with."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from parity import Inputs, Rules
from parity.recording.inputs import Arguments, input_layouts

X, Y = np.arange(6.0).reshape(2, 3), np.array([1, 2])


def called(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
    return args, kwargs


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (X, (("x",), {})),
        (torch.from_numpy(X), (("x",), {})),
        (jnp.asarray(X), (("x",), {})),
        ((X, Y), (("x", "y"), {})),
        ([X, Y], (("x", "y"), {})),
        ({"a": X, "b": Y}, ((), {"a": "x", "b": "y"})),
        ((X, None, True, 3), (("x", None, True, 3), {})),
        (Inputs(X, mask=Y), (("x",), {"mask": "y"})),
        (Inputs({"tokens": X, "types": (Y, None)}), (({"tokens": "x", "types": ("y", None)},), {})),
    ],
    ids=["array", "torch", "jax", "tuple", "list", "names", "None and numbers", "mixed", "nested"],
)
def test_how_a_model_is_called(inputs: Any, expected: Any) -> None:
    arguments = Arguments.of(inputs)
    names = [{2: "x", 1: "y"}[array.ndim] for array in arguments.arrays]
    assert arguments.apply(called, names) == expected


def test_both_precisions_see_the_same_numbers() -> None:
    arguments = Arguments.of((np.full(3, 0.1), np.full(3, 0.1 + 0.2j), np.array([2**40]), np.array([True])))
    single, pair, integers, flags = arguments.arrays
    assert single.dtype == np.float64
    assert (single == np.float32(0.1)).all()
    assert pair.dtype == np.complex128
    assert (pair == np.complex64(0.1 + 0.2j)).all()
    assert integers[0] == 2**40
    assert flags.dtype == bool


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((), "nothing to run on"),
        (np.zeros((0, 3)), "nothing to run on"),
        ((None, 3), "nothing to run on"),
        (np.array([1.0, np.nan]), r"NaN or infinity \(input 0"),
        ((X, np.array([-np.inf])), r"NaN or infinity \(input 1"),
        (np.array([1e300]), "in float32"),
        (np.array(["a"]), "input 0 holds <U1"),
    ],
)
def test_what_no_model_can_be_run_on(inputs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Arguments.of(inputs)


def test_layouts_that_may_be_meant_the_usual_one_first() -> None:
    image, mask = np.zeros((2, 3, 4, 5)), np.zeros((2, 1, 4, 4))
    assert list(input_layouts([image, X], Rules())) == [((0, 2, 3, 1), None), (None, None)]
    assert next(iter(input_layouts([image, mask], Rules()))) == ((0, 2, 3, 1), (0, 2, 3, 1))
    told = Rules(layouts={"input 1": None})
    assert list(input_layouts([image, mask], told)) == [((0, 2, 3, 1), None), (None, None)]
    assert next(iter(input_layouts([image, mask], Rules(layouts={"": None})))) == (None, None)
    assert list(input_layouts([X], Rules(layouts={"": (0, 2, 3, 1)}))) == [(None,)]  # of another rank
