"""The right numbers in a wrong order: the value, the order and the lines that made it."""

from __future__ import annotations

import numpy as np

from parity.trace.locate import captured
from parity.trace.order import equal_numbers, misplaced
from parity.trace.values.match import match
from parity.trace.values.program import traced
from parity.trace.values.torch_operations import operation_values, trace_torch
from tests.support.parity.traced import DIM, HEADS, TOKENS, line_of, planted


def inputs_of_projection(**wrong: str):
    """The input of the projection of block 1, the matches, and JAX's values."""
    sides = planted(**wrong)
    trace, program = trace_torch(sides.ours, sides.arrays), traced(sides.theirs, sides.arrays)
    call = next(call for call in trace.calls if call.key == ("blocks.1.attn.proj", 0))
    product = next(i for i in call.operations if trace.operations[i].name == "addmm")
    given = operation_values(sides.ours, sides.arrays, {product})[product].given
    wanted = next(x for x in given if x.shape[-1] == DIM and x.shape[0] == 2 * TOKENS)
    with sides.theirs.switches():
        matches = match(trace, program, {})
        numbers = equal_numbers(wanted, matches, len(matches.inputs))
        return wanted, numbers, captured(program, {}, set(numbers)), matches


def test_heads_that_are_merged_wrongly():
    wanted, numbers, arrays, matches = inputs_of_projection(block1="heads")
    found = misplaced(wanted, numbers, arrays, matches)
    assert found is not None
    assert found.number == numbers[-1]
    assert found.array.shape == found.wanted.shape == wanted.shape
    assert not np.allclose(found.array, wanted)
    np.testing.assert_allclose(np.sort(found.array, axis=None), np.sort(wanted, axis=None), rtol=1e-12)
    assert any(line.startswith(line_of("heads")) for line in found.lines)


def test_right_heads_are_in_no_other_order():
    wanted, numbers, arrays, matches = inputs_of_projection()
    assert numbers
    assert misplaced(wanted, numbers, arrays, matches) is None


def test_other_numbers_are_in_no_order():
    wanted, _, arrays, matches = inputs_of_projection(block1="heads")
    assert misplaced(wanted, [], arrays, matches) is None
    assert equal_numbers(wanted + 1e-3, matches, len(matches.inputs)) == []
    assert equal_numbers(np.ones_like(wanted), matches, len(matches.inputs)) == []


def test_only_what_is_computed_before_counts():
    wanted, numbers, _, matches = inputs_of_projection(block1="heads")
    assert equal_numbers(wanted, matches, numbers[0]) == []
    assert equal_numbers(wanted, matches, numbers[0] + 1) == numbers[:1]
    assert wanted.size == 2 * HEADS * TOKENS * DIM // HEADS
