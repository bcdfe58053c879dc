"""Locate every difference between a PyTorch model and a JAX program.

The values of both are matched. Where they first differ, the value that JAX computes in place of PyTorch's is replaced
by PyTorch's, and the program runs again: what still differs is wrong by itself. This is repeated until nothing differs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from parity.recording.capture import ROOT
from parity.runs.torch_side import TorchSide
from parity.trace.difference import Candidate, Difference, all_equal, with_lines
from parity.trace.regions import Region, first_regions, known_behind, missing
from parity.trace.values.layout import Layout, closest
from parity.trace.values.match import Matches, Replaced, captured, match
from parity.trace.values.program import Program
from parity.trace.values.torch_operations import TorchTrace, Values, operation_values
from parity.trace.wrong_inputs import boundary, with_inputs

CANDIDATES = 12
"""Number of values of JAX that are compared in full with a missing value of PyTorch."""

TRIES = 4
"""Number of values of JAX that are tried in place of a missing value of PyTorch, the closest first."""

MOST_RUNS = 200
"""Maximum number of runs of the JAX program."""


@dataclasses.dataclass(frozen=True)
class Located:
    """All differences, and the matches of the last run, in which they are replaced.

    `complete` is false if a difference could not be replaced, so that what follows it was not compared.
    """

    differences: tuple[Difference, ...]
    first: Matches
    last: Matches
    replaced: Replaced
    complete: bool


def locate(
    side: TorchSide, arrays: Sequence[np.ndarray], trace: TorchTrace, program: Program, *, every: bool = True
) -> Located:
    """Find all differences, or without `every` only match the values. Everything is in float64."""
    first = matches = match(trace, program, {})
    if not every:
        return Located((), first, matches, {}, True)
    replaced: dict[int, tuple[np.ndarray, Layout]] = {}
    differences: list[Difference] = []
    users = trace.users()
    results = set[int]()  # operations of regions from which nothing follows but the model's output
    for _ in range(MOST_RUNS):
        if not first_regions(trace, matches, results):
            return Located(tuple(differences), first, matches, replaced, True)
        regions = _computed_in_jax(trace, matches, results)
        values = operation_values(side, arrays, {i for region in regions for i in region.operations})
        found = _differences(side, arrays, regions, trace, matches, program, replaced, values)
        last = [x for x in found if not x.misplaced and not any(users[end] for end in x.region.ends)]
        results |= {operation for difference in last for operation in difference.region.operations}
        others = [x for x in found if x not in last]
        step = _replaced(others, trace, program, replaced) if others else (0, replaced, matches)
        chosen = 0 if step is None else step[0]
        differences += [with_lines(x if x in last else x.chosen(chosen)) for x in found]
        if step is None:
            break
        _, replaced, matches = step
    return Located(tuple(differences), first, matches, replaced, False)


def _computed_in_jax(trace: TorchTrace, matches: Matches, results: Collection[int]) -> list[Region]:
    """Return the first regions, past `results` and those of whose results JAX has nothing of the same size."""
    first = regions = first_regions(trace, matches, results)
    equal = all_equal(matches)
    absent = set(results)
    while regions:
        found = [region for region in regions if any(_similar(op, trace, matches, equal) for op in region.operations)]
        if found:
            return found
        absent |= {op for region in regions for op in region.operations}
        regions = first_regions(trace, matches, absent)
    return first


def _differences(
    side: TorchSide,
    torch_inputs: Sequence[np.ndarray],
    regions: Sequence[Region],
    trace: TorchTrace,
    matches: Matches,
    program: Program,
    replaced: Replaced,
    values: Mapping[int, Values],
) -> list[Difference]:
    equal = all_equal(matches)
    wanted = {
        operation: _similar(operation, trace, matches, equal) for region in regions for operation in region.operations
    }
    for end in _outputs(trace).intersection(wanted):
        size = trace.operations[end].values.size
        same = (n for n in matches.returned if n in matches.values and matches.values[n].values.size == size)
        wanted[end] = sorted({*wanted[end], *same})
    arrays = captured(program, replaced, {number for numbers in wanted.values() for number in numbers})
    found = []
    for region in regions:
        candidates = {
            op: _ranked(wanted[op], arrays, values[op].result, known_behind(trace, matches, [op]))
            for op in region.operations
            if op in values
        }
        for end in _outputs(trace).intersection(candidates):  # what JAX returns is known to be the model's output
            candidates[end].sort(key=lambda x: x.number not in matches.returned)
        ends = {end: values[end].result for end in region.ends}
        found.append(Difference(region, candidates, (), matches, ends))
    return [
        with_inputs(difference, side, torch_inputs, program, replaced, values[difference.region.operations[0]])
        for difference in found
    ]


def _outputs(trace: TorchTrace) -> set[int]:
    """Return the operations whose results the model returns."""
    return {i for call in trace.calls if call.key == ROOT for tensor in call.outputs for i in tensor.operations}


def _similar(operation: int, trace: TorchTrace, matches: Matches, equal: Collection[int]) -> list[int]:
    """Return the values of JAX that may stand for a missing result: computed from the same, of the same size."""
    values, known = trace.operations[operation].values, known_behind(trace, matches, [operation])
    behind = _computed_from(matches, known)
    numbers = [n for n in behind if n in matches.values and n not in equal]
    numbers = [n for n in numbers if matches.values[n].values.size == values.size]
    if not numbers:  # JAX may give the operation another value of the same size
        sizes = {matches.values[n].values.size for n in known}
        numbers = [n for n, x in matches.values.items() if n not in equal and x.values.size == values.size]
        numbers = [n for n in numbers if not sizes.isdisjoint(_sizes(matches, boundary(matches, n, equal)))]

    def distance(number: int) -> float:
        other = matches.values[number].values
        with np.errstate(all="ignore"):
            apart = np.abs(other.sums - values.sums) / np.maximum(values.scales, 1e-300)
        return float(np.nan_to_num(apart, nan=math.inf).max())

    nearest = set(sorted(numbers, key=distance)[:CANDIDATES]) | set(numbers[:CANDIDATES])
    # Where JAX lacks an operation, an operand takes the place of its result.
    passed = {n for n in known if matches.values[n].values.size == values.size}
    return sorted(nearest | passed)


def _sizes(matches: Matches, numbers: Collection[int]) -> set[int]:
    return {matches.values[n].values.size for n in numbers if n in matches.values}


def _computed_from(matches: Matches, known: Collection[int]) -> list[int]:
    """Return, in order, what JAX computes from all of the values `known`, else from any; all if there are none."""
    if not known:
        return list(range(len(matches.inputs)))
    each = [matches.descend([number]) for number in known]
    return sorted(set.intersection(*each) or set.union(*each))


def _ranked(
    numbers: Sequence[int], arrays: Mapping[int, np.ndarray], wanted: np.ndarray, known: Collection[int]
) -> list[Candidate]:
    """Return the candidates: those about as close as the closest, then the operands (`known`), then the others by relF.

    Of about equally close ones, the first computed comes first: later ones may be computed from it. The operands are
    among the first `TRIES`: where JAX lacks an operation, other values may be closer by chance.
    """
    found = []
    for number in numbers:
        best = closest(np.nan_to_num(arrays[number]), wanted) if number in arrays else None
        if best is not None:
            error = best[0] if np.isfinite(arrays[number]).all() else math.inf
            found.append(Candidate(number, error, best[1], best[1].to_torch(arrays[number])))
    found.sort(key=lambda x: (x.error, x.number))
    limit = ABOUT * found[0].error if found else 0.0
    operands = [x for x in found if x.number in known]
    near = sorted((x for x in found if x.error <= limit and x.number not in known), key=lambda x: x.number)
    ranked = [*near[: max(TRIES - len(operands), 1)], *operands, *near, *found]
    return list({x.number: x for x in ranked}.values())  # each once, where it comes first


ABOUT = 2.0
"""Ratio of relF up to which two candidates are about as close."""


def _replaced(
    differences: Sequence[Difference],
    trace: TorchTrace,
    program: Program,
    replaced: Replaced,
) -> tuple[int, dict[int, tuple[np.ndarray, Layout]], Matches] | None:
    """Replace the ends of the regions by PyTorch's values and match again; None if no replacement explains more.

    Also return which of the candidates was replaced.
    """
    users = trace.users()
    following = {user for difference in differences for end in difference.region.ends for user in users[end]}
    best: tuple[int, int, dict[int, tuple[np.ndarray, Layout]], Matches] | None = None
    for attempt in range(TRIES):
        new = dict(replaced)
        for difference in differences:
            new.update(_replacement(difference, attempt))
        if len(new) == len(replaced):
            break
        found = match(trace, program, new)
        if following.isdisjoint(missing(trace, found)):
            return attempt, new, found
        explained = sum(map(bool, found.operations))
        if best is None or explained > best[0]:
            best = explained, attempt, new, found
    before = sum(map(bool, differences[0].matches.operations))
    return None if best is None or best[0] <= before + len(differences) else best[1:]


def _replacement(difference: Difference, attempt: int) -> dict[int, tuple[np.ndarray, Layout]]:
    """Return PyTorch's values in place of the candidates with index `attempt`."""
    order = difference.misplaced
    if order is not None:
        return {order.number: (order.wanted, order.layout)}
    found: dict[int, tuple[np.ndarray, Layout]] = {}
    for end in difference.region.ends:
        candidates = difference.candidates.get(end, ())
        if candidates:
            chosen = candidates[min(attempt, len(candidates) - 1)]
            copies = _copies(chosen, difference.matches)
            found.update({number: (difference.wanted[end], layout) for number, layout in copies})
    return found


def _copies(chosen: Candidate, matches: Matches) -> list[tuple[int, Layout]]:
    """Return the chosen value, and others that are equal to it and have the same shape."""
    own = matches.values[chosen.number]
    others = [
        number
        for number, value in matches.values.items()
        if value.shape == own.shape
        and value.values.size == own.values.size
        and not value.rearranges
        and bool(own.values.matches(value.values.sums))
    ]
    return [(number, chosen.layout) for number in {chosen.number, *others}]
