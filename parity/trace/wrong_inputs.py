"""What the first operation of a difference is computed from: the right numbers in another order, or a wrong value."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from parity.measure.gates import rel_f
from parity.runs.torch_side import TorchSide
from parity.trace.difference import Candidate, Difference, all_equal, sources
from parity.trace.given import given_instead, partners_of, substitutes
from parity.trace.order import Misplaced, equal_numbers, misplaced
from parity.trace.values.fingerprint import Fingerprint
from parity.trace.values.layout import closest, layouts
from parity.trace.values.match import Matches, Replaced, captured
from parity.trace.values.program import Program
from parity.trace.values.source import jax_line
from parity.trace.values.torch_operations import Values, operation_values


def with_inputs(
    difference: Difference,
    side: TorchSide,
    torch_inputs: Sequence[np.ndarray],
    program: Program,
    replaced: Replaced,
    values: Values,
) -> Difference:
    """Add `misplaced` or `instead` if what the region's first operation takes is wrong, and the operation is not.

    What PyTorch computes from JAX's value in the region is among JAX's values then, and becomes the first candidate.
    """
    matches, first = difference.matches, difference.region.operations[0]
    best = difference.best(first)
    if best is not None and best.number in difference.region.known:  # an operand, not a version of the result
        best = None
    before = len(matches.inputs) if best is None else best.number
    behind = None if best is None else sources(matches, {best.number})
    equal = [[n for n in equal_numbers(x, matches, before) if behind is None or n in behind] for x in values.given]
    others = _others(difference, best, values.given)
    tried = substitutes(values, matches)
    partners = {n for x in values.given for n in partners_of(x, matches)[:2]}
    wanted = {*others, *partners, *(n for found in (*equal, *tried.values()) for n in found)}
    arrays = captured(program, replaced, wanted)

    def followed(found: Difference, index: int, array: np.ndarray) -> Difference:
        return _followed(found, side, torch_inputs, program, replaced, (values.call, index, array))

    for index, (tensor, numbers) in enumerate(zip(values.given, equal, strict=True)):
        order = misplaced(tensor, numbers, arrays, matches)
        if order is not None:
            array = _taken(values, index, order, arrays[order.number], matches)
            order = order if array is None else dataclasses.replace(order, array=array)
            found = dataclasses.replace(difference, misplaced=order, lines=order.lines)
            return found if array is None else followed(found, index, array)
    given = given_instead(values, tried, arrays, matches)
    if given is not None:
        tensor = values.given[given.index]
        fitting = closest(arrays[given.number], tensor)
        assert fitting is not None
        line = jax_line(matches.scopes[given.number])
        instead = Misplaced(given.number, given.array, tensor, fitting[1], False, (line,) if line else ())
        return followed(dataclasses.replace(difference, instead=instead), given.index, given.array)
    for number, tensor in others.items():
        fitting = closest(arrays[number], tensor)
        if fitting is not None:
            instead = Misplaced(number, fitting[1].to_torch(arrays[number]), tensor, fitting[1], False, ())
            return dataclasses.replace(difference, instead=instead)
    return difference


def _taken(values: Values, index: int, order: Misplaced, array: np.ndarray, matches: Matches) -> np.ndarray | None:
    """Return the misplaced numbers in the order in which PyTorch's operation computes JAX's result from them."""
    later = [n for n in matches.descend([order.number]) if n in matches.values]
    for layout in [None, *layouts(array.shape, order.wanted.shape)][:MOST_LAYOUTS]:
        taken = order.array if layout is None else layout.to_torch(array)
        try:
            own = Fingerprint.of(values.again(index, taken))
        except (RuntimeError, ValueError, IndexError, TypeError):  # PyTorch cannot compute with this array
            continue
        if own.identifies and any(_same(own, n, matches) for n in later):
            return taken
    return None


MOST_LAYOUTS = 24


def _same(own: Fingerprint, number: int, matches: Matches) -> bool:
    other = matches.values[number].values
    return other.size == own.size and bool(own.matches(other.sums))


def _followed(
    difference: Difference,
    side: TorchSide,
    torch_inputs: Sequence[np.ndarray],
    program: Program,
    replaced: Replaced,
    instead: tuple[int, int, np.ndarray],
) -> Difference:
    """Put those values of JAX first that PyTorch's operations of the region compute from JAX's value."""
    matches, region = difference.matches, difference.region
    found = operation_values(side, torch_inputs, region.operations, instead=instead)
    equal = all_equal(matches)
    prints = {op: Fingerprint.of(x.result) for op, x in found.items()}
    numbers = {
        op: next((n for n in matches.values if n not in equal and _same(own, n, matches)), None)
        for op, own in prints.items()
        if own.identifies
    }
    arrays = captured(program, replaced, {n for n in numbers.values() if n is not None})
    candidates = dict(difference.candidates)
    for op, number in numbers.items():
        result = found[op].result
        best = None if number is None else closest(arrays[number], result)
        if number is None or best is None:
            continue
        wanted = difference.wanted.get(op)
        error = candidates[op][0].error if wanted is None and candidates.get(op) else 0.0
        error = error if wanted is None else rel_f(result, wanted)
        first = Candidate(number, error, best[1], result)
        candidates[op] = [first, *(x for x in candidates.get(op, ()) if x.number != number)]
    return dataclasses.replace(difference, candidates=candidates)


def _others(difference: Difference, best: Candidate | None, given: Sequence[np.ndarray]) -> dict[int, np.ndarray]:
    """Return the equal value that JAX's version of the first operation is computed from, if it is not the right one.

    It is mapped to the tensor of PyTorch that it takes the place of.
    """
    matches, known = difference.matches, difference.region.known
    if best is None or not known or not known.isdisjoint(sources(matches, {best.number})):
        return {}
    found: dict[int, np.ndarray] = {}
    for tensor in given:
        size = Fingerprint.of(tensor).size
        if any(matches.values[n].values.size == size for n in known):
            nearest = boundary(matches, best.number, all_equal(matches))
            found.update({n: tensor for n in nearest if n in matches.values and matches.values[n].values.size == size})
    return found if len(found) == 1 else {}


def boundary(matches: Matches, number: int, equal: Collection[int]) -> set[int]:
    """Return the equal values that a value is computed from, without any equal value in between."""
    found, seen, waiting = set[int](), set[int](), [number]
    while waiting:
        for source in matches.inputs[waiting.pop()]:
            if source in equal:
                found.add(source)
            elif source not in seen:
                seen.add(source)
                waiting.append(source)
    return found
