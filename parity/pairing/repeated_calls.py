"""Pair the calls of modules that are called several times, by value."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from parity.measure.gates import rel_f
from parity.pairing.match_calls import Pair, Pairing
from parity.recording.capture import Call, Key
from parity.runs.jax_side import JaxSide
from parity.runs.torch_side import TorchSide

EQUAL = 1e-6
"""relF below which two results count as the same call: far below the difference caused by other inputs."""


def paired_by_value(
    pairing: Pairing, torch_side: TorchSide, jax_side: JaxSide, arrays: Sequence[np.ndarray]
) -> Pairing:
    """Pair each of PyTorch's repeated calls with the JAX call that returns the same result.

    Calls without such a partner keep their pairing. Both models run free once, if any module is called twice.
    """
    groups = _repeated(pairing)
    if not groups:
        return pairing
    pairs = [pair for group in groups for pair in group]
    ours = torch_side.forward(arrays, only={pair.torch for pair in pairs})
    theirs = jax_side.forward(arrays, only={pair.jax for pair in pairs})
    partners: dict[Key, Key] = {}
    for group in groups:
        partners |= _assigned(group, ours, theirs)
    moved = (dataclasses.replace(pair, jax=partners.get(pair.torch, pair.jax)) for pair in pairing.pairs)
    return dataclasses.replace(pairing, pairs=tuple(moved))


def _repeated(pairing: Pairing) -> list[list[Pair]]:
    """Return the pairs of each module that is called more than once."""
    by_path = itertools.groupby(sorted(pairing.pairs, key=lambda pair: pair.torch), key=lambda pair: pair.torch[0])
    return [group for group in (list(pairs) for _, pairs in by_path) if len(group) > 1]


def _assigned(group: Sequence[Pair], ours: Mapping[Key, Call], theirs: Mapping[Key, Call]) -> dict[Key, Key]:
    """Map each PyTorch call to the first unused JAX call with the same result."""
    free = [pair.jax for pair in group]
    found: dict[Key, Key] = {}
    for pair in group:
        wanted = pair.reference(ours[pair.torch]).outputs
        same = (key for key in free if _same(theirs[key].outputs, wanted))
        # Prefer the call's current partner: calls with equal results keep their order.
        key = pair.jax if pair.jax in free and _same(theirs[pair.jax].outputs, wanted) else next(same, None)
        if key is not None:
            found[pair.torch] = key
            free.remove(key)
    rest = [pair.torch for pair in group if pair.torch not in found]
    return found | dict(zip(rest, free, strict=True))


def _same(given: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> bool:
    if [x.shape for x in given] != [x.shape for x in wanted]:
        return False
    return all(x.size and rel_f(x, y) < EQUAL for x, y in zip(given, wanted, strict=True))
