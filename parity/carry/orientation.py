"""Decide whether a matrix is transposed for `nnx.Linear`, by the type of PyTorch's layer and not by shape alone.

`torch.nn.Linear` stores (out, in), flax (in, out). Other layers may store either: the shape of a non-square matrix
decides, and the decision holds for all layers of that type (e.g. GPT-2's Conv1D, whose projection is square).
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Iterable

import torch

from parity.carry.rules import LeafRule

IN_OUT = ("Conv1D",)
"""Layer types that store (in, out): the one of `transformers`."""


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A PyTorch matrix that a rule transposes, the module that holds it, and the shape of flax's matrix."""

    name: str
    module: torch.nn.Module | None
    shape: tuple[int, ...]
    jax_shape: tuple[int, ...]

    @property
    def type(self) -> str:
        """Type name of the module; for TorchScript modules, the original one."""
        return str(getattr(self.module, "original_name", None) or type(self.module).__name__)

    @property
    def is_linear(self) -> bool:
        """Whether the layer is a PyTorch linear layer, or unknown."""
        known = self.module is None or isinstance(self.module, torch.nn.Linear | torch.nn.Bilinear)
        return known or self.type in ("Linear", "NonDynamicallyQuantizableLinear")

    @property
    def fits(self) -> set[bool]:
        """Orientations in which the shape equals flax's: transposed (True), unchanged (False)."""
        choices = {True: self.shape[::-1], False: self.shape}
        return {transposed for transposed, shape in choices.items() if shape == self.jax_shape}


def oriented(matrices: Iterable[Matrix]) -> tuple[dict[str, bool], list[str]]:
    """Decide which matrices of layers other than `nn.Linear` are transposed, by name.

    Returns:
        Whether each matrix is transposed, and notes on the matrices for which this was assumed.
    """
    others = [matrix for matrix in matrices if not matrix.is_linear and matrix.fits]
    votes: dict[str, set[bool]] = {}
    for matrix in others:
        if len(matrix.fits) == 1:
            votes.setdefault(matrix.type, set()).update(matrix.fits)
    found, notes = {}, []
    for matrix in others:
        known = matrix.fits if len(matrix.fits) == 1 else votes.get(matrix.type, set())
        if len(known) != 1 and matrix.type in IN_OUT:
            known = {False}
        if len(known) == 1:
            found[matrix.name] = next(iter(known))
            continue
        found[matrix.name] = True
        rows = list(matrix.shape)
        notes.append(
            f"{matrix.name} {rows} of {matrix.type} is square: it was transposed, as of nn.Linear; if {matrix.type} "
            "keeps (in, out), write Rules(leaves={nnx.Linear: (LeafRule('weight', 'kernel'),)})"
        )
    return found, notes


def is_linear(rule: LeafRule) -> bool:
    """Return whether `rule` is a built-in one for the matrix of a linear layer: (in, out) or (out, in) in JAX.

    The second is written as the permutation (0, 1), so that it is not taken for that of any other tensor.
    """
    leaf = rule.torch.rpartition(".")[2]
    return leaf == "weight" and rule.axes in ((1, 0), (0, 1)) and rule.part[1] == 1 and not rule.reshape


# Alternative rules for one tensor


@dataclasses.dataclass(frozen=True)
class Choice:
    """A tensor of PyTorch, its partner in JAX, and the alternative rules between them; shapes None: unknown."""

    torch: str
    jax: str
    rules: tuple[LeafRule, ...]
    module: torch.nn.Module | None
    shape: tuple[int, ...] | None
    jax_shape: tuple[int, ...] | None

    @property
    def types(self) -> tuple[str, ...]:
        """Type names of PyTorch's layer, subclasses first."""
        known = getattr(self.module, "original_name", None)
        names = tuple(cls.__name__ for cls in type(self.module).__mro__) if self.module is not None else ()
        return (known, *names) if known else names

    @property
    def group(self) -> tuple[str, str]:
        """Tensors of the same layer type in PyTorch and the same name in JAX have the same layout."""
        return next(iter(self.types), ""), self.jax.rpartition(".")[2]

    def fitting(self) -> list[LeafRule]:
        """Return the rules for PyTorch's layer type under which the shapes fit, the most likely first."""
        special = [rule for rule in self.rules if rule.layer and any(t.startswith(rule.layer) for t in self.types)]
        usual = [rule for rule in self.rules if not rule.layer]
        others = [rule for rule in self.rules if rule.layer] if self.module is None else []
        if self.shape is None or self.jax_shape is None:
            return special or usual
        return [rule for rule in special or [*usual, *others] if _fits(rule, self.shape, self.jax_shape)]

    def effect(self, rule: LeafRule) -> tuple[object, ...]:
        """Return a value that is equal for rules that give the same numbers for these shapes."""
        shape = self.shape or ()
        axes = range(len(shape)) if rule.axes is None else rule.axes
        moved = tuple(axis for axis in axes if shape[axis] != 1)
        sizes = [shape[axis] for axis in axes]
        return moved, rule.part, tuple(axis for axis in rule.flip if sizes[axis] != 1)


def _fits(rule: LeafRule, shape: tuple[int, ...], jax_shape: tuple[int, ...]) -> bool:
    """Return whether a rule fits; one that reshapes splits or merges neighbouring axes only."""
    if not rule.fits(shape, jax_shape):
        return False
    own = (shape[0] // rule.part[1], *shape[1:]) if rule.part[1] > 1 else shape
    moved = own if rule.axes is None else tuple(own[axis] for axis in rule.axes)
    return not rule.reshape or _edges(moved) <= _edges(jax_shape) or _edges(jax_shape) <= _edges(moved)


def _edges(shape: tuple[int, ...]) -> set[int]:
    """Return the products of the first axes: the places where one axis ends."""
    return set(itertools.accumulate(shape, operator.mul, initial=1))


def choose(choices: Iterable[Choice]) -> tuple[dict[tuple[str, str], LeafRule], set[str], list[str]]:
    """Choose a rule for every tensor.

    Returns:
        The rule by PyTorch's and JAX's name, the names of PyTorch's tensors whose layout the shapes decide or should,
        and notes on the tensors for which a layout was assumed.
    """
    found: dict[tuple[str, str], LeafRule] = {}
    votes: dict[tuple[str, str], set[tuple[object, ...]]] = {}
    several, decided = [], set()
    for choice in choices:
        fitting = choice.fitting() if len(choice.rules) > 1 else []
        found[choice.torch, choice.jax] = next(iter(fitting), choice.rules[0])
        effects = {choice.effect(rule) for rule in fitting}
        if len(effects) > 1:
            several.append((choice, fitting))
        elif effects and 1 not in (choice.shape or ()):
            votes.setdefault(choice.group, set()).update(effects)
        if len({rule.axes for rule in choice.rules if len(rule.axes or ()) == 2 and not rule.reshape}) > 1:
            decided.add(choice.torch)
    assumed: dict[tuple[str, str], list[tuple[Choice, LeafRule]]] = {}
    for choice, fitting in several:
        known = votes.get(choice.group, set())
        agreed = [rule for rule in fitting if choice.effect(rule) in known] if len(known) == 1 else []
        if not agreed and choice.group[0] in IN_OUT:
            agreed = [rule for rule in reversed(fitting) if choice.shape is not None and len(choice.shape) == 2]
        rule = found[choice.torch, choice.jax] = (agreed or fitting)[0]
        other = next(x for x in fitting if choice.effect(x) != choice.effect(rule))
        assumed.setdefault((choice.jax.rpartition(".")[2], _way(rule)), []).append((choice, other))
    return found, decided, [_assumption(leaf, way, pairs) for (leaf, way), pairs in assumed.items()]


def _way(rule: LeafRule) -> str:
    moved = "as it is" if rule.axes in (None, (0, 1)) else f"with its axes {rule.axes}"
    return moved + (f", flipped along {rule.flip}" if rule.flip else "")


ASSUMED = "does not decide its layout"
"""Part of the notes on layouts that were assumed."""


def _assumption(leaf: str, way: str, pairs: list[tuple[Choice, LeafRule]]) -> str:
    (first, other), more = pairs[0], len(pairs) - 2
    names = ", ".join(choice.torch for choice, _ in pairs[:2]) + (f" and {more} more" if more > 0 else "")
    axes = "" if other.axes in (None, (0, 1)) else f", {other.axes}"
    flip = f", flip={other.flip}" if other.flip else ""
    rule = f"LeafRule({first.torch!r}, {first.jax!r}{axes}{flip})"
    return (
        f"the shape of {names} {ASSUMED}: taken {way}, by the name {leaf} in JAX; if that is wrong, "
        f"write Rules(leaves={{parity.adapters.Program: ({rule},)}})"
    )
