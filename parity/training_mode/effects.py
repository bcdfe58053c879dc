"""Effects of random draws on the outputs, used to pair draws that program order leaves ambiguous and to compare the
thresholds of masks.

All draws on both sides are neutral except one. The outputs then identify the corresponding draw of the other model and
the layout of its values, independent of module names.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
import torch
from flax import nnx

from parity.carry.convert import to_numpy
from parity.measure.gates import norm
from parity.random_draws.jax_draws import handed_out, in_precision
from parity.random_draws.matching import (
    Handed,
    Match,
    Matching,
    Move,
    Site,
    drawn,
    hand_out,
    moves,
    neutral,
    numbers,
    on_grid,
    to_jax,
)
from parity.random_draws.torch_draws import TorchDraws
from parity.recording.structure import tensors
from parity.runs.jax_side import JaxSide
from parity.runs.torch_side import TorchSide

SAME = 1e-10
"""Maximum relative distance of outputs (float64) on which two draws have the same effect."""

LIMIT = 64
"""Maximum number of draws to pair by effect: each costs a forward pass of both models."""

Outputs = Callable[[Handed], list[np.ndarray]]


def paired_by_effect(matching: Matching, ours: TorchSide, theirs: JaxSide, arrays: Sequence[np.ndarray]) -> Matching:
    """Return the matching with ambiguous partners and layouts resolved by their effects, or unchanged if impossible."""
    groups = _ambiguous(matching.matches)
    if not groups or sum(map(len, groups)) > LIMIT:
        return matching
    of_torch, of_jax = _torch_outputs(ours, arrays), _jax_outputs(theirs, arrays)
    changed = {id(pair): pair for pair in matching.matches}
    for group in groups:
        for old, new in zip(group, _told_apart(matching, group, of_torch, of_jax), strict=True):
            changed[id(old)] = new
    return dataclasses.replace(matching, matches=tuple(changed[id(pair)] for pair in matching.matches))


TRIALS, FINE = 64, 256
"""Maximum number of trials for one draw, and total number of values between 0 and 1 to try."""


def other_thresholds(
    matching: Matching, ours: TorchSide, theirs: JaxSide, arrays: Sequence[np.ndarray]
) -> list[tuple[Match, int, int]]:
    """Return pairs of draws that have different effects for some values: (pair, differing trials, trials).

    The threshold of a mask computed from uniform numbers is unknown, and a small draw samples few values, so several
    trials are needed to reveal a difference.
    """
    pairs = [pair for pair in matching.matches if _threshold_unknown(pair)]
    if not pairs:
        return []
    of_torch, of_jax = _torch_outputs(ours, arrays), _jax_outputs(theirs, arrays)
    found = []
    for pair in pairs[:LIMIT]:
        trials = min(TRIALS, -(-FINE // pair.torch.size))
        wrong = 0
        for trial in range(trials):
            handed = hand_out(matching, functools.partial(_spread, site=pair.torch, trial=trial, trials=trials))
            wrong += _apart(of_jax(handed[1]), of_torch(handed[0])) > SAME
        if wrong:
            found.append((pair, wrong, trials))
    return found


def _threshold_unknown(pair: Match) -> bool:
    laws = pair.torch.law, pair.jax.law
    masks = all(law.family in ("bernoulli", "uniform") for law in laws)
    return masks and any(law.keep is None for law in laws) and pair.torch.size < FINE


def _spread(match: Match, site: Site, trial: int, trials: int) -> np.ndarray:
    """Return numbers at `site` that lie between those of the other trials."""
    if match.torch is not site:
        return drawn(match)
    n = site.size
    u = (np.arange(n) + (trial + 0.5) / trials) / n
    return on_grid(np.random.RandomState(trial).permutation(u)).reshape(site.shape)


def _ambiguous(matches: Sequence[Match]) -> list[list[Match]]:
    """Return groups of pairs whose partners or layouts are ambiguous."""
    groups: list[list[Match]] = []
    for pair in matches:
        group = next((g for g in groups if moves(g[0].torch, pair.jax) and moves(pair.torch, g[0].jax)), None)
        if group is None:
            groups.append([pair])
        else:
            group.append(pair)
    return [group for group in groups if len(group) > 1 or len(group[0].moves) > 1]


def _told_apart(matching: Matching, group: list[Match], ours: Outputs, theirs: Outputs) -> list[Match]:
    """Pair each of the group's PyTorch draws with the JAX draw that has the same effect; else return `group`."""
    left = [pair.jax for pair in group]
    found = []
    for pair in group:
        wanted = ours(hand_out(matching, functools.partial(_one, site=pair.torch))[0])
        best = None
        for site in left:
            for move in moves(pair.torch, site):
                given = theirs(_moved(matching, pair.torch, site, move))
                if _apart(given, wanted) <= SAME:
                    best = Match(pair.torch, site, moves(pair.torch, site)).with_move(move)
                    break
            if best is not None:
                break
        if best is None:
            return group
        left.remove(best.jax)
        found.append(best)
    return found


def _one(match: Match, site: Site) -> np.ndarray:
    """Return numbers that drop elements at `site` only."""
    return numbers(site, site.law.keep) if match.torch is site else neutral(match.torch)


def _moved(matching: Matching, source: Site, target: Site, move: Move) -> Handed:
    """Return JAX's numbers: those of PyTorch's draw `source` at `target`, neutral ones elsewhere."""
    given = [(m.jax, m.moves[0](neutral(m.torch), m.torch.law.kind)) for m in matching.matches if m.jax is not target]
    return to_jax(matching, [*given, (target, move(numbers(source, source.law.keep), source.law.kind))])


def _apart(given: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    if len(given) != len(wanted):
        return np.inf
    # Layouts may differ, so compare sorted values.
    pairs = [(np.sort(a, axis=None), np.sort(b, axis=None)) for a, b in zip(given, wanted, strict=True)]
    if any(a.size != b.size for a, b in pairs):
        return np.inf
    scale = norm(np.concatenate([b for _, b in pairs]))
    return norm(np.concatenate([a - b for a, b in pairs])) / max(scale, np.finfo(float).tiny)


def _torch_outputs(side: TorchSide, arrays: Sequence[np.ndarray]) -> Outputs:
    def run(handed: Handed) -> list[np.ndarray]:
        with TorchDraws(side.model, handed, quiet=True), torch.no_grad():
            output = side.apply(side.model, side.inputs(arrays))
        return [to_numpy(x) for x in tensors(output) if x.is_floating_point()]

    return run


def _jax_outputs(side: JaxSide, arrays: Sequence[np.ndarray]) -> Outputs:
    with side.switches():
        graphdef, state = nnx.split(side.model)
        inputs = side.inputs(arrays)

    def forward(state: nnx.State, handed: Handed) -> list[jax.Array]:
        model = nnx.merge(graphdef, state)
        with handed_out(model, handed):
            leaves = tensors(side.apply(model, inputs))
        return [x for x in leaves if jax.numpy.issubdtype(x.dtype, jax.numpy.floating)]

    compiled = jax.jit(forward)

    def run(handed: Handed) -> list[np.ndarray]:
        with side.switches():
            return [np.asarray(x) for x in compiled(state, in_precision(handed, side.precision))]

    return run
