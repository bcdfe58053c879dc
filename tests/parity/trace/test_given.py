"""A right operation that JAX gives another value: the value, and the result that PyTorch computes from it."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from parity.trace.given import Given, given_instead, partners_of, substitutes
from parity.trace.values.match import captured, match
from parity.trace.values.program import traced
from parity.trace.values.torch_operations import operation_values, trace_torch
from tests.parity.trace.test_places import PARAMS, Model, port
from tests.support.parity.traced import Sides, tokens


def first_product(function: Any) -> tuple[Given | None, Any, Any]:
    """Look at the product of `inner.fc1`."""
    sides = Sides.of(Model(), function, PARAMS, tokens())
    trace, program = trace_torch(sides.ours, sides.arrays), traced(sides.theirs, sides.arrays)
    call = next(call for call in trace.calls if call.key == ("inner.fc1", 0))
    product = next(i for i in call.operations if trace.operations[i].name == "addmm")
    values = operation_values(sides.ours, sides.arrays, {product})[product]
    with sides.theirs.switches():
        matches = match(trace, program, {})
        tried = substitutes(values, matches)
        wanted = {n for tensor in values.given for n in partners_of(tensor, matches)}
        arrays = captured(program, {}, wanted.union(*tried.values()))
        return given_instead(values, tried, arrays, matches), values, matches


def test_the_value_that_is_given_and_its_result():
    found, values, matches = first_product(port(between=lambda x: x * 1.5))
    assert found is not None
    right = values.given[found.index]
    np.testing.assert_allclose(found.array, 1.5 * right, rtol=1e-12)
    assert found.result in matches.descend([found.number])
    computed = values.again(found.index, found.array)
    assert computed.shape == values.result.shape
    assert not np.allclose(computed, values.result)


def test_a_value_in_another_layout_is_given_in_pytorchs():
    def between(x: jax.Array) -> jax.Array:
        return (x.transpose(2, 0, 1) * 1.5).transpose(1, 2, 0)

    found, values, _ = first_product(port(between=between))
    assert found is not None
    np.testing.assert_allclose(found.array, 1.5 * values.given[found.index], rtol=1e-12)


def test_a_right_value_is_not_another_one():
    found, _, _ = first_product(port())
    assert found is None


def test_the_right_tensor_is_not_its_own_substitute():
    _, values, matches = first_product(port())
    for index, numbers in substitutes(values, matches).items():
        assert set(numbers).isdisjoint(partners_of(values.given[index], matches))
