"""The arrays of a pytree by dotted name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

from parity.carry.program import Program

KeyPath = Sequence[Any]


@dataclasses.dataclass(frozen=True)
class Weights:
    """A pytree whose arrays have names (None: a leaf that stays as it is, such as a number or a generator's key).

    `places` are the paths of the leaves. `parts` are arrays that are taken as several: n equal ones along the first
    axis, called `name.0` and so on.
    """

    names: tuple[str | None, ...]
    leaves: tuple[Any, ...]
    structure: Any
    places: tuple[str, ...] = ()
    parts: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, tree: Any, name: Callable[[KeyPath], str | None]) -> Weights:
        """
        Raises:
            ValueError: Two arrays have the same name.
        """
        found, structure = jax.tree_util.tree_flatten_with_path(tree)
        names = tuple(name(path) if is_array(leaf) else None for path, leaf in found)
        named = [x for x in names if x is not None]
        twice = next((x for x in named if named.count(x) > 1), None) if len(set(named)) < len(named) else None
        if twice is not None:
            raise ValueError(f"two tensors of JAX are called {twice}: rename one, without dots in its name")
        places = tuple(jax.tree_util.keystr(path) for path, _ in found)
        return cls(names, tuple(leaf for _, leaf in found), structure, places)

    @property
    def arrays(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, leaf in zip(self.names, self.leaves, strict=True):
            if name is not None and name in self.parts:
                found |= {f"{name}.{i}": part for i, part in enumerate(_split(leaf, self.parts[name]))}
            elif name is not None:
                found[name] = leaf
        return found

    def put(self, arrays: Mapping[str, Any]) -> Any:
        """Return the tree with other arrays; all names have to be in `arrays`."""

        def array(name: str) -> Any:
            if name not in self.parts:
                # A weakly typed number (a counter) has the default type of this precision, as where it was made.
                return arrays[name] + 0 if getattr(arrays[name], "weak_type", False) else arrays[name]
            return jnp.concatenate([arrays[f"{name}.{i}"] for i in range(self.parts[name])])

        pairs = zip(self.names, self.leaves, strict=True)
        return jax.tree.unflatten(self.structure, [leaf if name is None else array(name) for name, leaf in pairs])

    def held_by(self, tree: Any) -> dict[str, Any]:
        """Return the arrays of another tree that lie where this one has arrays, by name; others are left out."""
        names = dict(zip(self.places, self.names, strict=True))
        found = {
            names.get(jax.tree_util.keystr(path)): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        return {name: leaf for name, leaf in found.items() if name is not None}

    def without_arrays(self) -> Weights:
        """Return the same, without holding the arrays: they are given to `put`."""
        leaves = (None if name is not None else leaf for name, leaf in zip(self.names, self.leaves, strict=True))
        return dataclasses.replace(self, leaves=tuple(leaves))


def _split(array: Any, count: int) -> list[Any]:
    size = array.shape[0] // count
    if isinstance(array, jax.ShapeDtypeStruct):
        return [jax.ShapeDtypeStruct((size, *array.shape[1:]), array.dtype)] * count
    return [array[i * size : (i + 1) * size] for i in range(count)]


def is_array(leaf: Any) -> bool:
    """Return whether a leaf is an array of numbers (or its shape), not a generator's key."""
    if not isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
        return False
    return not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def trained(leaf: Any) -> type[nnx.Variable[Any]]:
    """Return the kind of variable of an array among the parameters: trained if it is floating."""
    return nnx.Param if jnp.issubdtype(leaf.dtype, jnp.inexact) else nnx.Variable


def values(program: Program) -> dict[str, Any]:
    """Return the arrays of a program by name."""
    return {name: getattr(program, name).get_value() for name in program.names}


def key_name(key: Any) -> str:
    """Return the name of one step of a path in a pytree."""
    match key:
        case DictKey() | FlattenedIndexKey():
            return str(key.key)
        case GetAttrKey():
            return key.name
        case SequenceKey():
            return str(key.idx)
    return str(key)


def dotted(path: KeyPath) -> str:
    return ".".join(map(key_name, path))
