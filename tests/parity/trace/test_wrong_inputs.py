"""What follows from a wrong value in the operations of a difference is what JAX computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch

from parity.trace.locate import locate
from parity.trace.values.program import traced
from parity.trace.values.torch_operations import trace_torch
from tests.support.parity.traced import DIM, Sides, planted, tokens


def differences(sides: Sides) -> tuple[Any, ...]:
    trace, program = trace_torch(sides.ours, sides.arrays), traced(sides.theirs, sides.arrays)
    with sides.theirs.switches():
        located = locate(sides.ours, sides.arrays, trace, program)
    assert located.complete
    return located.differences


def test_heads_in_another_order_lead_to_the_value_that_jax_computes():
    (difference,) = differences(planted(block1="heads"))
    assert difference.misplaced is not None
    first = difference.best(difference.region.operations[0])
    assert first is not None
    own = difference.matches.values[first.number].values
    np.testing.assert_allclose(first.array.sum(), own.sums[0], rtol=1e-9)


class Parts(torch.nn.Module):
    """Two parts of one tensor, each with a function of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = torch.tanh(x).chunk(2, -1)
        return torch.sin(a) * torch.exp(b)


def parts(order: Callable[..., Any]) -> Sides:
    def function(p: Any, x: Any) -> Any:
        a, b = order(*jnp.split(jnp.tanh(x), 2, axis=-1))
        return jnp.sin(a) * jnp.exp(b) + 0 * p["w"]

    model = Parts()
    model.register_parameter("w", torch.nn.Parameter(torch.zeros(DIM // 2)))
    return Sides.of(model, function, {"w": np.zeros(DIM // 2)}, tokens())


def test_the_value_in_the_place_of_another_is_found():
    """sin is given the second part: what PyTorch computes from it is the first candidate, in the right layout."""
    found = differences(parts(lambda a, b: (b, a)))
    assert found
    sine = found[0]
    assert sine.instead is not None
    best = sine.best(sine.region.operations[0])
    assert best is not None
    np.testing.assert_allclose(best.array, np.sin(sine.instead.array), rtol=1e-12)
    np.testing.assert_allclose(sine.instead.array, np.tanh(tokens())[..., DIM // 2 :], rtol=1e-12)


def test_right_parts_have_no_difference():
    assert differences(parts(lambda a, b: (a, b))) == ()
