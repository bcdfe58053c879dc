"""Trees of tensors (arguments and outputs of modules), flattened in the same order for both frameworks.

Mappings are ordered by key and records (dataclasses, NamedTuples) by field name; sequences by position. `jax.tree`
and `torch.utils._pytree` order dicts differently, and neither flattens a plain dataclass.
"""

from __future__ import annotations

import copy
import dataclasses
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
import torch
from flax import nnx

Kind = Literal["mapping", "record", "sequence"]

Rebuild = Callable[[Sequence[Any]], Any]


@dataclasses.dataclass(frozen=True)
class Node:
    """A container: names of its items (sorted, except in a sequence), their values, and a function to rebuild it.

    `declared` are the names in the order in which a mapping or record declares them.
    """

    kind: Kind
    names: tuple[Any, ...]
    values: tuple[Any, ...]
    rebuild: Rebuild
    declared: tuple[Any, ...] = ()


class Leaf:
    """Base class of objects that are treated as leaves."""


def is_tensor(leaf: Any) -> bool:
    """Return whether a leaf is a PyTorch or JAX array."""
    return isinstance(leaf, torch.Tensor | jax.Array)


def node(tree: Any) -> Node | None:
    """Return `tree` as a container; None for a leaf."""
    if (
        tree is None
        or isinstance(tree, Leaf | torch.Size | str | bytes | nnx.Pytree | nnx.Variable | type)
        or is_tensor(tree)
    ):
        return None
    if isinstance(tree, Mapping):
        return _mapping(tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        named: Any = tree
        return _record(named, named._fields, lambda values: named._replace(**values))
    if isinstance(tree, list | tuple):
        return Node("sequence", tuple(range(len(tree))), tuple(tree), lambda values: _sequence(tree, values))
    if dataclasses.is_dataclass(tree):
        names = tuple(field.name for field in dataclasses.fields(tree) if hasattr(tree, field.name))
        return _record(tree, names, lambda values: _with_fields(tree, values))
    return _registered(tree)


def _mapping(tree: Mapping[Any, Any]) -> Node:
    names = tuple(sorted(tree, key=lambda key: (type(key).__name__, str(key))))

    def rebuild(values: Sequence[Any]) -> Any:
        new = dict(zip(names, values, strict=True))
        if type(tree) is dict or not hasattr(tree, "__setitem__"):
            return {key: new[key] for key in tree} if type(tree) is dict else type(tree)(new)  # type: ignore[call-arg]
        whole: Any = copy.copy(tree)
        for key, value in new.items():
            whole[key] = value
        return whole

    return Node("mapping", names, tuple(tree[name] for name in names), rebuild, tuple(tree))


def _record(tree: Any, fields: Sequence[str], make: Callable[[dict[str, Any]], Any]) -> Node:
    names = tuple(sorted(fields))
    values = tuple(getattr(tree, name) for name in names)
    return Node("record", names, values, lambda new: make(dict(zip(names, new, strict=True))), tuple(fields))


def _with_fields(tree: Any, values: Mapping[str, Any]) -> Any:
    """Return a copy of a dataclass, frozen or not, with other values."""
    whole = copy.copy(tree)
    for name, value in values.items():
        object.__setattr__(whole, name, value)
    return whole


def _sequence(tree: Any, values: Sequence[Any]) -> Any:
    if type(tree) in (list, tuple):
        return type(tree)(values)
    return list(values) if isinstance(tree, list) else tuple(values)  # torch.return_types and similar


def _registered(tree: Any) -> Node | None:
    """Return a container registered with jax.tree or torch's pytree, by position."""
    values, spec = jax.tree.flatten(tree, is_leaf=lambda x: x is not tree)
    if len(values) != 1 or values[0] is not tree:
        return Node("sequence", tuple(range(len(values))), tuple(values), lambda new: jax.tree.unflatten(spec, new))
    found, torch_spec = torch.utils._pytree.tree_flatten(tree, is_leaf=lambda x: x is not tree)
    if len(found) != 1 or found[0] is not tree:

        def rebuild(new: Sequence[Any]) -> Any:
            return torch.utils._pytree.tree_unflatten(list(new), torch_spec)

        return Node("sequence", tuple(range(len(found))), tuple(found), rebuild)
    return None


def flatten(tree: Any) -> tuple[list[Any], Rebuild]:
    """Return all leaves in order, and a function that rebuilds the tree from other leaves."""
    own = node(tree)
    if own is None:
        return [tree], lambda leaves: leaves[0]
    parts = [flatten(value) for value in own.values]
    sizes = [len(leaves) for leaves, _ in parts]

    def rebuild(leaves: Sequence[Any]) -> Any:
        values, start = [], 0
        for (_, make), size in zip(parts, sizes, strict=True):
            values.append(make(leaves[start : start + size]))
            start += size
        return own.rebuild(values)

    return [leaf for leaves, _ in parts for leaf in leaves], rebuild


def tensors(tree: Any) -> list[Any]:
    """Return the arrays among the leaves, in order."""
    return [leaf for leaf in flatten(tree)[0] if is_tensor(leaf)]


def with_tensors(tree: Any, new: Sequence[Any]) -> Any:
    """Return `tree` with its arrays replaced, in order."""
    leaves, rebuild = flatten(tree)
    supply = iter(new)
    return rebuild([next(supply) if is_tensor(leaf) else leaf for leaf in leaves])


# Structure of a tree, without its tensors


@dataclasses.dataclass(frozen=True)
class Form:
    """The structure of a tree: "tensor", "None", "value" (a number or string, in `value`), "object", or a container.

    `declared` are the names of the items of a mapping or record that are not None, in the order of declaration.
    """

    kind: str
    parts: tuple[tuple[Any, Form], ...] = ()
    value: Any = None
    declared: tuple[Any, ...] = ()

    @property
    def present(self) -> tuple[tuple[Any, Form], ...]:
        """The items that are not None."""
        return tuple((name, part) for name, part in self.parts if part.kind != "None")

    @property
    def in_order(self) -> bool:
        """Whether the items are declared in the order in which they are flattened."""
        return self.kind == "sequence" or self.declared == tuple(name for name, _ in self.present)

    def __str__(self) -> str:
        if self.kind == "mapping":
            return "{" + ", ".join(f"{name!r}: {part}" for name, part in self.parts) + "}"
        if self.kind == "record":
            return "fields (" + ", ".join(f"{name}: {part}" for name, part in self.parts) + ")"
        if self.kind == "sequence":
            return "(" + ", ".join(str(part) for _, part in self.parts) + ("," if len(self.parts) == 1 else "") + ")"
        return repr(self.value) if self.kind == "value" else self.kind


def form(tree: Any) -> Form:
    """Return the structure of a module's output."""
    own = node(tree)
    if own is not None:
        parts = tuple((name, form(value)) for name, value in zip(own.names, own.values, strict=True))
        present = {name for name, part in parts if part.kind != "None"}
        return Form(own.kind, parts, declared=tuple(name for name in own.declared if name in present))
    if is_tensor(tree):
        return Form("tensor")
    if tree is None:
        return Form("None")
    if isinstance(tree, numbers.Number | str | np.generic):
        return Form("value", value=tree)
    return Form("object")


NAMED = ("mapping", "record")
"""Kinds of containers whose items have names."""


def difference(ours: Form, theirs: Form, where: str = "the output") -> str | None:
    """Describe how PyTorch's and JAX's structures differ; None if they agree.

    Mappings and records are compared by name; with a sequence, by position, if their names are declared in alphabetical
    order. An item that is None counts as absent.
    """
    if ours.kind in NAMED and theirs.kind in NAMED:
        return _names_differ(ours, theirs, where)
    containers = (*NAMED, "sequence")
    if ours.kind in containers and theirs.kind in containers:
        return _sequences_differ(ours, theirs, where)
    if ours.kind != theirs.kind:
        return f"{where} is {ours} in PyTorch, {theirs} in JAX"
    if ours.kind == "value" and ours.value != theirs.value:
        return f"{where} is {ours.value!r} in PyTorch, {theirs.value!r} in JAX"
    return None


def _names_differ(ours: Form, theirs: Form, where: str) -> str | None:
    mine, other = (dict(form.present) for form in (ours, theirs))
    if mine.keys() != other.keys():
        texts = [", ".join(map(repr, names)) or "nothing" for names in (mine, other)]
        return f"{where} holds {texts[0]} in PyTorch, {texts[1]} in JAX"
    return next(filter(None, (difference(mine[name], other[name], f"{where}[{name!r}]") for name in mine)), None)


def _sequences_differ(ours: Form, theirs: Form, where: str) -> str | None:
    if len(ours.present) != len(theirs.present):
        return f"{where} is {ours} in PyTorch, {theirs} in JAX"
    if not (ours.in_order and theirs.in_order):
        return f"{where} is {ours} in PyTorch, {theirs} in JAX: return the same names on both sides"
    pairs = zip(ours.present, theirs.present, strict=True)
    found = (difference(a, b, f"{where}[{name!r}]") for (name, a), (_, b) in pairs)
    return next(filter(None, found), None)
