"""Pairing of the tensors of two models that hold the same weights already, by their values, whatever their names.

Tensors are compared by a fingerprint that does not depend on layout: the sum of a hash of every element. That of a part
is the difference of two cumulative sums along an axis, so parts of fused and stacked tensors are found at the same
cost. A fingerprint finds candidates; a pair is one only if some layout makes its values equal, bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from flax import nnx

from parity.by_value.candidates import Resolver, fitting
from parity.carry.arrays import dtype_name, to_numpy
from parity.carry.entries import Entry, Ledger
from parity.carry.ledger import identity, jax_variables
from parity.carry.model_types import jax_subject
from parity.carry.program import Adapter
from parity.carry.rules import TORCH_ONLY, Box, LeafRule, matches
from parity.carry.storage import unreadable
from parity.carry.wrappers import StateDict, state_of

MAX_LISTED = 8
"""Number of names in one note."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """A tensor, or a part of one."""

    name: str
    array: np.ndarray
    box: Box = ()

    def part(self, axis: int, start: int, stop: int) -> Unit:
        box = {a: (b, c) for a, b, c in self.box}
        first = box[axis][0] if axis in box else 0
        box[axis] = first + start, first + stop
        view = self.array[(slice(None),) * axis + (slice(start, stop),)]
        return Unit(self.name, view, tuple((a, *bounds) for a, bounds in sorted(box.items())))


def ledger_by_value(
    source: torch.nn.Module | StateDict, jax_model: nnx.Module | Adapter, *, partial: bool = False
) -> Ledger:
    """Pair the tensors of two models that hold the same weights, whatever their names, shapes and order.

    Each tensor is paired with the one that has the same values in another layout: axes permuted, split, merged or
    reversed, as a part of a fused tensor on either side, or as one layer of a stacked flax tensor. Floats of different
    precisions are compared after rounding to the lower one.

    Args:
        source: A PyTorch model or its state dict.
        jax_model: The flax model.
        partial: Whether tensors without a partner are listed in `torch_only` and `jax_only`, with a note, rather than
            raised.

    Returns:
        The ledger. Tensors with the same values as others (zeros, ones, copies) are told apart by the modules that
        their neighbours belong to, by their names and by order; `notes` says where that was needed.

    Raises:
        ValueError: Tensors have no partner (all are listed), or cannot be read.
    """
    jax_model = jax_subject(jax_model, "jax_model")
    variables, state = jax_variables(jax_model), state_of(source)
    tied, first = {}, dict[Any, str]()
    for name, tensor in state.items():
        if (known := first.setdefault(identity(tensor), name)) != name:
            tied[name] = known
    ours = _units({name: _read(name, x) for name, x in state.items() if name not in tied})
    theirs = _units({name: np.asarray(variable[...]) for name, variable in variables.items()})
    matcher = _Matcher(ours, theirs)
    matcher.match()
    notes = list(matcher.notes)
    notes += [f"{name} is {known} in PyTorch (tied): carried once" for name, known in tied.items()]
    layers = {".".join(map(str, path)): type(module).__name__ for path, module in nnx.iter_modules(jax_model)}
    entries = [
        Entry.of(
            dataclasses.replace(rule, torch=one.name, jax=other.name, out_of=one.box, into=other.box),
            _owner(other.name, layers),
            tuple(state[one.name].shape),
            tuple(variables[other.name].shape),
            dtype_name(state[one.name]),
        )
        for one, other, rule in matcher.pairs
    ]
    order = {name: i for i, name in enumerate(state)}
    entries.sort(key=lambda entry: (order[entry.torch], entry.out_of))
    torch_only = [unit for unit in matcher.ours if not matches(unit.name, TORCH_ONLY)]
    problems = [f"{_named(unit)} of PyTorch has the values of no tensor of JAX" for unit in torch_only]
    problems += [f"{_named(unit)} of JAX has the values of no tensor of PyTorch" for unit in matcher.theirs]
    if problems and not partial:
        raise ValueError(f"{len(problems)} tensors have no partner: " + "; ".join(problems))
    return Ledger(
        tuple(entries),
        tuple(dict.fromkeys(unit.name for unit in matcher.ours)),
        tuple(dict.fromkeys(unit.name for unit in matcher.theirs)),
        tuple(tied),
        tuple(notes + problems),
    )


def _read(name: str, tensor: torch.Tensor) -> np.ndarray:
    problem = unreadable(tensor)
    if problem is not None:
        raise ValueError(f"{name} of PyTorch {problem}")
    return to_numpy(tensor)


def _units(arrays: Mapping[str, np.ndarray]) -> list[Unit]:
    return [Unit(name, array) for name, array in arrays.items()]


def _owner(name: str, layers: Mapping[str, str]) -> str:
    while name not in layers:
        name = name.rpartition(".")[0]
    return layers[name]


def _named(unit: Unit) -> str:
    part = f"[{', '.join(f'{start}:{stop} of axis {axis}' for axis, start, stop in unit.box)}]" if unit.box else ""
    return f"{unit.name}{part} {list(unit.array.shape)}"


class _Matcher:
    """State of the matching: the units that are left on both sides, the pairs so far, and notes."""

    def __init__(self, ours: list[Unit], theirs: list[Unit]) -> None:
        self.ours, self.theirs = _of_one_precision(ours, theirs)
        self.pairs: list[tuple[Unit, Unit, LeafRule]] = []
        self.notes: list[str] = []
        self.unsure: list[tuple[list[Unit], list[Unit]]] = []

    def match(self) -> None:
        self._whole()
        self._parts()
        for _ in range(2):  # a stack of fused tensors is cut twice
            if not (self.ours and self.theirs):
                break
            if not self._cut_stacks():
                break
            self._whole()
            self._parts()
        self._resolve()
        self._join_again()
        self._whole(uneven=True)
        self._resolve()

    def _whole(self, *, uneven: bool = False) -> None:
        """Pair the units with equal fingerprints; where several have one, it is left to `_resolve`.

        With `uneven`, also if one side has more of them than the other: a copy that the other side lacks.
        """
        groups: dict[Any, tuple[list[Unit], list[Unit]]] = {}
        sizes = {unit.array.size for unit in self.ours} & {unit.array.size for unit in self.theirs}
        for side, units in enumerate((self.ours, self.theirs)):
            for unit in units:
                if unit.array.size in sizes:
                    groups.setdefault((unit.array.size, _fingerprint(unit.array)), ([], []))[side].append(unit)
        for one, other in groups.values():
            if len(one) == len(other) == 1:
                self._pair(one[0], other[0])
            elif one and other and (uneven or len(one) == len(other)):
                self.unsure.append((one, other))
                self._remove(*one, *other)

    def _pair(self, one: Unit, other: Unit) -> bool:
        rules = fitting(one.array, other.array)
        if not rules:
            self.notes.append(
                f"{_named(one)} and {_named(other)} hold the same numbers, in an order that no layout gives"
            )
            return False
        self.pairs.append((one, other, rules[0]))
        if len(rules) > 1 and not _is_constant(one.array):
            self.notes.append(f"{_named(one)} equals {_named(other)} in {len(rules)} layouts: {rules[0]!r} was taken")
        self._remove(one, other)
        return True

    def _remove(self, *units: Unit) -> None:
        gone = {id(unit) for unit in units}
        self.ours = [unit for unit in self.ours if id(unit) not in gone]
        self.theirs = [unit for unit in self.theirs if id(unit) not in gone]

    def _parts(self) -> None:
        """Pair units with parts of units of the other side, along any axis."""
        for small_side in (0, 1):
            for large in list((self.theirs, self.ours)[small_side]):
                smalls = [u for u in (self.ours, self.theirs)[small_side] if u.array.size < large.array.size]
                for axis in range(large.array.ndim):
                    if self._fill(large, axis, smalls, small_side):
                        break

    def _fill(self, large: Unit, axis: int, smalls: Sequence[Unit], small_side: int) -> bool:
        """Cover a unit along one axis by units of the other side; nothing is changed unless all of it is covered."""
        length = large.array.shape[axis]
        if length < 2:
            return False
        per_row = large.array.size // length
        fitting_sizes = [u for u in smalls if u.array.size % per_row == 0]
        if sum(u.array.size for u in fitting_sizes) < large.array.size:
            return False
        sums = np.concatenate([[np.uint64(0)], np.cumsum(_row_fingerprints(large.array, axis), dtype=np.uint64)])
        known: dict[tuple[int, int], list[Unit]] = {}
        for unit in fitting_sizes:
            known.setdefault((unit.array.size // per_row, _fingerprint(unit.array)), []).append(unit)
        lengths = sorted({rows for rows, _ in known})
        found, start = list[tuple[Unit, Unit, LeafRule]](), 0
        while start < length:
            step = self._next(large, axis, start, sums, known, lengths, small_side)
            if step is None:
                return False
            found.append(step)
            start += (step[1] if small_side == 0 else step[0]).array.shape[axis]
        self.pairs += found
        self._remove(large, *(one if small_side == 0 else other for one, other, _ in found))
        return True

    @staticmethod
    def _next(
        large: Unit,
        axis: int,
        start: int,
        sums: np.ndarray,
        known: Mapping[tuple[int, int], list[Unit]],
        lengths: Sequence[int],
        small_side: int,
    ) -> tuple[Unit, Unit, LeafRule] | None:
        for rows in lengths:
            if start + rows > large.array.shape[axis]:
                break
            candidates = known.get((rows, (int(sums[start + rows]) - int(sums[start])) % 2**64), [])
            part = large.part(axis, start, start + rows)
            # Of several units with the same values, the first is taken: they are in the order of their stack.
            for unit in candidates:
                pair = (unit, part) if small_side == 0 else (part, unit)
                rules = fitting(pair[0].array, pair[1].array)
                if rules:
                    candidates.remove(unit)
                    return *pair, rules[0]
        return None

    def _cut_stacks(self) -> bool:
        """Replace the flax tensors that are left by their layers."""
        cut = [unit for unit in self.theirs if unit.array.ndim > 1 and len(unit.array) > 1 and not unit.box]
        if not cut:
            return False
        self._remove(*cut)
        self.theirs += [unit.part(0, i, i + 1) for unit in cut for i in range(len(unit.array))]
        return True

    def _resolve(self) -> None:
        """Pair the units whose values are equal to those of others."""
        resolver = Resolver([(one.name, other.name) for one, other, _ in self.pairs])
        unsure, self.unsure = sorted(self.unsure, key=lambda group: len(group[0])), []
        for one, other in unsure:
            chosen, clear = resolver.resolve([u.name for u in one], [u.name for u in other])
            failed = [(i, j) for i, j in chosen if not self._pair(one[i], other[j])]
            gone = [{pair[side] for pair in chosen if pair not in failed} for side in (0, 1)]
            self.ours += [unit for i, unit in enumerate(one) if i not in gone[0]]
            self.theirs += [unit for j, unit in enumerate(other) if j not in gone[1]]
            if not clear:
                names = ", ".join(u.name for u in one[:MAX_LISTED]) + (", ..." if len(one) > MAX_LISTED else "")
                self.notes.append(f"{names}: equal values, told apart by their names and order alone")

    def _join_again(self) -> None:
        """Put units that are still in pieces together again, where no piece of the tensor has a partner."""
        used = {other.name for _, other, _ in self.pairs}
        whole: dict[str, Unit] = {}
        for unit in self.theirs:
            if unit.box and unit.name not in used:
                whole[unit.name] = Unit(unit.name, unit.array.base if unit.array.base is not None else unit.array)
        self.theirs = [unit for unit in self.theirs if unit.name not in whole] + list(whole.values())


def _of_one_precision(ours: list[Unit], theirs: list[Unit]) -> tuple[list[Unit], list[Unit]]:
    """Round all floats to the lowest precision that holds any of them, so that equal weights have equal values."""
    kinds = {unit.array.dtype for unit in (*ours, *theirs) if _floats(unit.array)}
    lowest = min(kinds, key=lambda dtype: (dtype.itemsize, dtype.name), default=np.dtype(np.float32))

    def rounded(unit: Unit) -> Unit:
        array = unit.array.astype(lowest).astype(np.float64 if lowest.itemsize == 8 else np.float32)
        return dataclasses.replace(unit, array=array if _floats(unit.array) else unit.array)

    return [rounded(unit) for unit in ours], [rounded(unit) for unit in theirs]


def _floats(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" or array.dtype.name in ("bfloat16",) or array.dtype.name.startswith("float")


def _hashes(array: np.ndarray) -> np.ndarray:
    """Return a 64-bit hash of each element, by value."""
    if array.dtype.kind in "biu":
        bits = array.astype(np.int64).view(np.uint64)
    elif array.dtype.kind == "c":
        return _hashes(np.ascontiguousarray(array.real)) + np.uint64(31) * _hashes(np.ascontiguousarray(array.imag))
    else:
        plain = np.ascontiguousarray(array) + array.dtype.type(0)  # -0 becomes 0
        bits = plain.view(np.uint32 if plain.itemsize == 4 else np.uint64).astype(np.uint64)
    bits = np.atleast_1d(bits)  # arithmetic of NumPy's scalars warns of overflow
    bits = (bits + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xBF58476D1CE4E5B9)
    bits ^= bits >> np.uint64(29)
    bits *= np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(32)
    return bits


def _fingerprint(array: np.ndarray) -> int:
    """Return the sum of the hashes of all elements, modulo 2**64."""
    return int(_hashes(array).sum(dtype=np.uint64))


def _row_fingerprints(array: np.ndarray, axis: int) -> np.ndarray:
    others = tuple(i for i in range(array.ndim) if i != axis)
    return np.asarray(_hashes(array).reshape(array.shape).sum(axis=others, dtype=np.uint64))


def _is_constant(array: np.ndarray) -> bool:
    return bool(array.size and (array == array.flat[0]).all())
