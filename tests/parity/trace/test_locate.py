"""Planted mistakes are located to the operation and to the line of JAX, two at once too; a right port has none."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from parity.trace.locate import Located, captured, locate
from parity.trace.regions import first_regions
from parity.trace.values.layout import SAME
from parity.trace.values.program import Program, traced
from parity.trace.values.torch_operations import TorchTrace, trace_torch
from tests.support.parity.traced import Sides, line_of, planted

FIRST = {
    "eps": ("blocks.1.norm1", "native_layer_norm"),
    "scale": ("blocks.1.attn", "mul"),
    "softmax": ("blocks.1.attn", "_softmax"),
    "residual": ("blocks.1", "add"),
    "gelu": ("blocks.1", "gelu"),
}
"""Mistake -> the module and the operation of PyTorch that differ first."""


def found(sides: Sides, *, every: bool = True) -> tuple[TorchTrace, Program, Located]:
    trace, program = trace_torch(sides.ours, sides.arrays), traced(sides.theirs, sides.arrays)
    with sides.theirs.switches():
        return trace, program, locate(sides.ours, sides.arrays, trace, program, every=every)


def test_a_right_port_has_no_difference():
    trace, _, located = found(planted())
    assert located.differences == ()
    assert located.complete
    assert located.first is located.last
    assert located.replaced == {}
    assert first_regions(trace, located.last) == []


@pytest.mark.parametrize("wrong", FIRST)
def test_a_mistake_is_located(wrong: str):
    trace, _, located = found(planted(block1=wrong))
    (difference,) = located.differences
    module, operation = FIRST[wrong]
    first = trace.operations[difference.region.operations[0]]
    assert (difference.region.owner[0], first.name) == (module, operation)
    assert difference.misplaced is None
    assert located.complete
    if wrong != "residual":  # nothing in JAX computes what is not there
        assert difference.lines[0].startswith(line_of(wrong))


def test_heads_merged_wrongly_are_located():
    _, _, located = found(planted(block1="heads"))
    (difference,) = located.differences
    assert difference.misplaced is not None
    assert any(line.startswith(line_of("heads")) for line in difference.lines)
    assert located.complete


@pytest.mark.parametrize(
    ("first", "second"), [("gelu", "eps"), ("softmax", "softmax"), ("heads", "scale"), ("residual", "gelu")]
)
def test_two_mistakes_are_both_located(first: str, second: str):
    _, _, located = found(planted(block0=first, block2=second))
    one, two = located.differences
    assert one.region.owner[0].startswith("blocks.0")
    assert two.region.owner[0].startswith("blocks.2")
    assert located.complete


def test_after_the_replacement_everything_else_is_equal():
    trace, _, located = found(planted(block0="gelu"))
    assert located.replaced
    assert first_regions(trace, located.first) != []
    assert first_regions(trace, located.last) == []


def test_candidates_are_ranked_by_their_error():
    trace, _, located = found(planted(block1="scale"))
    (difference,) = located.differences
    for operation in difference.region.operations:
        best = difference.best(operation)
        assert best is not None
        assert best.array.shape == trace.operations[operation].shape
        numbers = [candidate.number for candidate in difference.candidates[operation]]
        assert len(set(numbers)) == len(numbers)
    mul = difference.best(difference.region.operations[0])
    assert mul.error == pytest.approx(1 - 0.5**0.5, rel=1e-6)  # of 1/sqrt(8) and 1/sqrt(4)
    assert mul.error > SAME


def test_without_every_values_are_only_matched():
    _, _, located = found(planted(block1="gelu"), every=False)
    assert located.differences == ()
    assert located.complete


def test_the_candidates_that_were_chosen_come_first():
    _, _, located = found(planted(block1="scale"))
    (difference,) = located.differences
    (end,) = difference.region.ends
    inner = difference.region.operations[0]
    moved = difference.chosen(1)
    assert moved.best(end) is difference.candidates[end][1]
    assert moved.best(inner) is difference.best(inner)
    beyond = difference.chosen(10**6)
    assert beyond.best(end) is difference.candidates[end][-1]
    assert len(beyond.candidates[end]) == len(difference.candidates[end])
    assert dataclasses.replace(difference, candidates={}).best(end) is None


def test_values_are_captured_and_replaced():
    sides = planted()
    trace, program, located = found(sides)
    softmax = next(i for i, op in enumerate(trace.operations) if op.name == "_softmax")
    number = located.first.operations[softmax][0]
    with sides.theirs.switches():
        values = captured(program, {}, {number})
    assert values.keys() == {number}
    assert values[number].dtype == np.float64
    np.testing.assert_allclose(values[number].sum(-1), 1)


def test_nan_in_jax_is_located():
    """A value that is not finite is no candidate of a small error, but is replaced all the same."""
    trace, _, located = found(planted(block1="nan"))
    first = located.differences[0].region
    assert (first.owner[0], trace.operations[first.operations[0]].name) == ("blocks.1", "gelu")
    assert located.complete
