"""Pairing of the pieces of two models by gradients at values that both models share.

All pieces that could be partners hold the same numbers, in a form that does not depend on layout. Both models then
compute the same outputs, whichever piece is which, and the gradients by two partners are equal up to layout. One
gradient of each model so tells most pieces apart; these get values of their own, which tells apart more, and so on.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from flax import nnx

from parity.by_value.candidates import Resolver, fitting
from parity.carry.jax_names import every_path
from parity.carry.rules import LeafRule, layer_rules, slices
from parity.measure.gates import rel_f
from parity.suggest.pieces import Piece, Sides, assembled
from parity.suggest.probe import JaxProbe, TorchProbe
from parity.suggest.values import SIZES, Class, classes, drawn, shared_values

AGREE = 1e-10
"""relF up to which outputs are equal."""
SAME = 1e-7
"""Largest difference of two gradients of partners, relative to their norm."""
NOTHING = 1e-13
"""Norm of a gradient, relative to the largest, below which the tensor has no effect."""


Group = tuple[list[Piece], list[Piece]]
"""Pieces of both models with equal gradients."""


Held = tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]
"""The numbers of PyTorch's and of JAX's tensors, by name."""


CLEAR = 100.0
"""Multiple of that norm from which a tensor needs a partner: below it, rounding could hide the partner's effect."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two pieces that are partners, and the layout (a rule without names)."""

    ours: Piece
    theirs: Piece
    rule: LeafRule


@dataclasses.dataclass
class Matching:
    """State of the pairing of one way to cut both models.

    `moves` are the permutations of the outputs' axes, `pairs` what is decided, and `classes` what is left. `held` are
    the numbers of both models as they were given, by name.
    """

    torch: TorchProbe
    jax: JaxProbe
    classes: list[Class]
    draw: np.random.RandomState
    held: Held
    pairs: list[Pair] = dataclasses.field(default_factory=list)
    moves: list[tuple[int, ...]] = dataclasses.field(default_factory=list)
    error: float = np.inf
    size: float = SIZES[0]

    @classmethod
    def of(
        cls, torch: TorchProbe, jax: JaxProbe, sides: Sides, flipped: frozenset[str], held: Held, seed: int
    ) -> Matching:
        return cls(torch, jax, classes(sides, flipped), np.random.RandomState(seed), held)

    def values(self, more: Sequence[Pair] = ()) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Return values of all tensors: pairs hold numbers of their own, all others those of their class."""
        ours, theirs = dict[Piece, np.ndarray](), dict[Piece, np.ndarray]()
        taken = {piece for pair in more for piece in (pair.ours, pair.theirs)}
        for group in filter(_holds, self.classes):
            for side, found in zip((ours, theirs), shared_values(group, self.draw, self.size), strict=True):
                side.update({piece: value for piece, value in found.items() if piece not in taken})
        for pair in (*self.pairs, *more):
            ours[pair.ours] = drawn(pair.ours.shape, self.draw, self.size)
            theirs[pair.theirs] = pair.rule.to_jax(ours[pair.ours], pair.theirs.shape)
        shapes = {n: tuple(x.shape) for n, x in self.torch.leaves.items()}
        jax_shapes = {n: tuple(self.jax.variables[n].shape) for n in self.jax.names}
        return assembled(ours, shapes), assembled(theirs, jax_shapes)

    def agrees(self, more: Sequence[Pair] = ()) -> bool:
        """Return whether the outputs are equal, with `more` taken as pairs; sets `moves` and `error`."""
        ours, theirs = self.values(more)
        outputs, others = self.torch.run(ours)[0], self.jax.run(theirs)[0]
        if len(outputs) != len(others) or not outputs:
            raise ValueError(
                f"the outputs cannot be compared: PyTorch returns {len(outputs)} floating tensors, JAX {len(others)}"
            )
        self.moves = []
        for value, other in zip(outputs, others, strict=True):
            choices = [axes for axes in _usual_first(value.ndim) if value.transpose(axes).shape == other.shape]
            if not choices:
                raise ValueError(f"an output is {list(value.shape)} in PyTorch and {list(other.shape)} in JAX")
            self.moves.append(min(choices, key=lambda axes: _error(other, value.transpose(axes))))
        self.error = self.distance(outputs, others)
        return self.error <= AGREE

    def distance(self, outputs: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
        """Return the largest relF of JAX's outputs, relative to PyTorch's."""
        pairs = zip(outputs, others, self.moves, strict=True)
        return max(_error(other, value.transpose(axes)) for value, other, axes in pairs)

    def gradients(self) -> tuple[dict[Piece, np.ndarray], dict[Piece, np.ndarray]]:
        """Return the gradients of a random direction of the outputs by all pieces."""
        ours, theirs = self.values()
        directions = []
        for axes, shape in zip(self.moves, self.jax.output_shapes, strict=True):
            back = tuple(shape[int(i)] for i in np.argsort(axes))
            directions.append(self.draw.standard_normal(back))
        mine = self.torch.run(ours, directions)[1]
        moved = [c.transpose(axes) for c, axes in zip(directions, self.moves, strict=True)]
        other = self.jax.run(theirs, moved)[1]
        pieces = [p for group in self.classes for p in group.ours] + [pair.ours for pair in self.pairs]
        jax_pieces = [p for group in self.classes for p in group.theirs] + [pair.theirs for pair in self.pairs]
        return _by_piece(mine, pieces), _by_piece(other, jax_pieces)

    def match(self) -> list[str]:
        """Decide what can be decided; return the problems, one for each group of pieces that is left."""
        doubts: list[str] = []
        while True:
            groups = self._rounds()
            if not groups:
                return doubts + self._without_effect()
            group, certain = self._break_tie(groups)
            if group is None:
                return doubts + [_ambiguous(ours, theirs) for ours, theirs in groups]
            known = len(self.pairs)
            self._rounds()
            inside = {*group[0], *group[1]}
            # Where a choice decides other pieces, too, whole branches are exchangeable: either choice is right.
            if not certain and all(pair.ours in inside for pair in self.pairs[known:]):
                doubts.append(_ambiguous(*group))

    def _rounds(self) -> list[Group]:
        """Compare gradients until that decides nothing more; return the groups with equal gradients that are left."""
        tied: list[Group] = []
        for size in SIZES:
            self.size = size
            while self._left() and (groups := self._round()) is None:
                pass
            if not self._left():
                break
            tied = groups or tied
        self.size = SIZES[0]
        left = {piece for group in self.classes for piece in group.ours}
        return [group for group in tied if group[0][0] in left]

    def _left(self) -> bool:
        return any(group.ours and group.theirs for group in self.classes)

    def _round(self) -> list[Group] | None:
        """Compare the gradients once. Return None if pieces were paired; else the groups with equal gradients.

        Raises:
            ValueError: A piece with an effect has no partner.
        """
        mine, other = self.gradients()
        if not all(np.isfinite(x).all() for x in (*mine.values(), *other.values())):
            raise ValueError("the gradients hold NaN or infinity at random weights, so no rules can be proposed")
        self.still = NOTHING * max((float(np.linalg.norm(x)) for x in mine.values()), default=0.0)
        norms = {p: float(np.linalg.norm(g)) for x in (mine, other) for p, g in x.items()}
        before, tied, alone = len(self.pairs), [], list[str]()
        for position, group in enumerate(self.classes):
            ours, theirs = ([p for p in side if norms[p] > self.still] for side in (group.ours, group.theirs))
            near = _candidates([mine[p] for p in ours], [other[p] for p in theirs], self.still)
            seen = set[int]()
            decided: list[Pair] = []
            for i, partners in enumerate(near):
                rivals = [k for k, others in enumerate(near) if others == partners]
                if not partners:
                    alone += [f"{_name(ours[i])} of PyTorch"] * (norms[ours[i]] > CLEAR * self.still)
                elif len(partners) == 1 and len(rivals) == 1:
                    rules = self._layouts(mine[ours[i]], other[theirs[partners[0]]])
                    if rules:
                        decided.append(Pair(ours[i], theirs[partners[0]], rules[0]))
                    else:
                        alone.append(f"{_name(ours[i])} of PyTorch")
                elif i not in seen:
                    seen.update(rivals)
                    tied.append(([ours[k] for k in rivals], [theirs[k] for k in partners]))
            used = {k for partners in near for k in partners}
            alone += [
                f"{_name(p)} of JAX" for k, p in enumerate(theirs) if k not in used and norms[p] > CLEAR * self.still
            ]
            self.pairs += decided
            self.classes[position] = _without(group, decided)
        if alone:
            raise ValueError(f"no partner has the same effect on the outputs: {_some(alone)}")
        return tied if len(self.pairs) == before else None

    def _layouts(self, gradient: np.ndarray, other: np.ndarray) -> list[LeafRule]:
        return fitting(gradient, other, error=SAME + self.still / float(np.linalg.norm(gradient)))

    def _break_tie(self, groups: Sequence[Group]) -> tuple[Group | None, bool]:
        """Pair one piece of a group whose pieces are exchangeable: by equal numbers, or the likeliest by its name.

        Returns:
            The group, None if no pair of any group leaves the outputs equal; and whether numbers or names decide it.
        """
        for tied in groups:
            for pair in self._same_numbers(*tied):
                if self.agrees([pair]):
                    self._take(pair)
                    return tied, True
        resolver = self._resolver()
        found = [(resolver.resolve([p.path for p in a], [p.path for p in b]), (a, b)) for a, b in groups]
        for (chosen, certain), tied in sorted(found, key=lambda item: not item[0][1]):
            ours, theirs = tied
            i, first = chosen[0]
            group = next(group for group in self.classes if ours[i] in group.ours)
            for j in sorted(range(len(theirs)), key=lambda j: j != first):
                for rule in group.rules(ours[i].shape, theirs[j].shape)[:4]:
                    pair = Pair(ours[i], theirs[j], rule)
                    if self.agrees([pair]):
                        self._take(pair)
                        return tied, certain and j == first
        return None, False

    def _same_numbers(self, ours: Sequence[Piece], theirs: Sequence[Piece]) -> Iterator[Pair]:
        """Yield the pairs that hold the same numbers in both models as given, and share them with no other piece."""
        numbers = [
            {piece: held[piece.name][slices(piece.box)] for piece in side if piece.name in held}
            for side, held in zip((ours, theirs), self.held, strict=True)
        ]
        fits = {
            (one, other): fitting(array, jax_array)
            for one, array in numbers[0].items()
            for other, jax_array in numbers[1].items()
        }
        found = [pair for pair, rules in fits.items() if rules]
        for one, other in found:
            if sum(one in pair or other in pair for pair in found) == 1 and len(fits[one, other]) == 1:
                yield Pair(one, other, fits[one, other][0])

    def _resolver(self) -> Resolver:
        return Resolver((pair.ours.path, pair.theirs.path) for pair in self.pairs)

    def _take(self, pair: Pair) -> None:
        self.pairs.append(pair)
        self.classes = [_without(group, [pair]) for group in self.classes]

    def _without_effect(self) -> list[str]:
        """Pair the pieces that no output depends on, such as the bias of attention's keys, by the modules around them.

        Pieces of one side only stay in `classes`.
        """
        problems = []
        modules = {path: node for path, node in every_path(self.jax.side.model) if isinstance(node, nnx.Module)}
        for group in list(self.classes):
            same = list(self._same_numbers(group.ours, group.theirs))
            for pair in same:
                self._take(pair)
            group = _without(group, same)
            resolver = self._resolver()
            if len(group.ours) != len(group.theirs):
                if group.ours and group.theirs:
                    problems.append(_undecided(group))
                continue
            names = [p.path for p in group.ours], [p.path for p in group.theirs]
            chosen, clear = resolver.resolve(*names)
            if len(group.ours) > 1 and not clear:
                problems.append(_undecided(group))
                continue
            for i, j in chosen:
                one, other = group.ours[i], group.theirs[j]
                rules = group.rules(one.shape, other.shape)
                path, _, leaf = other.name.rpartition(".")
                known = (
                    [rule.axes for rule in layer_rules(modules[path]) if rule.jax == leaf] if path in modules else []
                )
                usual = [rule for rule in rules if rule.axes in known and not rule.flip] or rules
                if len(usual) == 1:
                    self._take(Pair(one, other, usual[0]))
                else:
                    problems.append(f"ambiguous: no output depends on {_name(one)} of PyTorch, whose layout is unknown")
        return problems


def _holds(group: Class) -> bool:
    return bool(group.ours or group.theirs)


def _ambiguous(ours: Sequence[Piece], theirs: Sequence[Piece]) -> str:
    return f"ambiguous: {_names(ours)} of PyTorch may each be {_names(theirs)} of JAX, with the same outputs"


def _undecided(group: Class) -> str:
    ours, theirs = _names(group.ours), _names(group.theirs)
    return f"ambiguous: no output depends on {ours} of PyTorch, which may each be {theirs} of JAX"


def _usual_first(rank: int) -> list[tuple[int, ...]]:
    """Return permutations of the axes of an output: unchanged, channels last, and all others."""
    usual = [tuple(range(rank)), (0, *range(2, rank), 1)] if rank > 1 else [tuple(range(rank))]
    return list(dict.fromkeys([*usual, *itertools.permutations(range(rank))])) if rank <= 5 else usual


def _error(value: np.ndarray, reference: np.ndarray) -> float:
    finite = np.isfinite(value) & np.isfinite(reference)
    if not np.array_equal(np.where(finite, 0, value), np.where(finite, 0, reference), equal_nan=True):
        return float("inf")
    if not finite.any():
        return float("inf")
    return rel_f(value[finite], reference[finite])


def _by_piece(grads: Mapping[str, np.ndarray], pieces: Sequence[Piece]) -> dict[Piece, np.ndarray]:
    return {piece: grads[piece.name][slices(piece.box)] for piece in pieces}


def _candidates(mine: Sequence[np.ndarray], other: Sequence[np.ndarray], still: float) -> list[list[int]]:
    """Return, for each gradient, the positions of those of the other side that are equal up to layout."""
    prints = [[_fingerprint(x) for x in side] for side in (mine, other)]
    found = []
    for one in prints[0]:
        limit = SAME * one[0] + still
        found.append(
            [k for k, two in enumerate(prints[1]) if all(abs(a - b) <= limit for a, b in zip(one, two, strict=True))]
        )
    return found


def _fingerprint(array: np.ndarray) -> tuple[float, ...]:
    """Return properties of the values in the size of their norm, which comes first, that do not depend on order."""
    norm = float(np.linalg.norm(array)) or 1.0
    unit = array.ravel() / norm
    root = np.sqrt(unit.size)
    powers = (unit.sum() / root, (unit**3).sum() * root, (unit**4).sum() * unit.size, unit.max(), unit.min())
    return norm, *(norm * float(x) for x in powers)


def _without(group: Class, pairs: Sequence[Pair]) -> Class:
    gone = {piece for pair in pairs for piece in (pair.ours, pair.theirs)}
    ours, theirs = (tuple(p for p in side if p not in gone) for side in (group.ours, group.theirs))
    return dataclasses.replace(group, ours=ours, theirs=theirs)


def _name(piece: Piece) -> str:
    part = f"[{', '.join(f'{start}:{stop} of axis {axis}' for axis, start, stop in piece.box)}]" if piece.box else ""
    return f"{piece.name}{part} {list(piece.shape)}"


def _names(pieces: Sequence[Piece]) -> str:
    return _some([_name(piece) for piece in pieces])


def _some(names: Sequence[str], limit: int = 12) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
