"""Which tensor of PyTorch is which of Flax NNX: names, types and shapes only. Needs no PyTorch."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx

from parity.rules import TORCH_ONLY, LeafRule, Rules, matches


@dataclasses.dataclass(frozen=True)
class Entry:
    """The same numbers on both sides: usually a tensor each, else a part of PyTorch's or one layer of a flax stack.

    `layer` is the flax type that owns it, `axes` the permutation PyTorch -> JAX, `part` (i, n) the i-th of n parts of
    PyTorch's tensor, `index` the position in flax's stacked one.
    """

    torch: str
    jax: str
    layer: str
    axes: tuple[int, ...] | None
    torch_shape: tuple[int, ...]
    jax_shape: tuple[int, ...]
    dtype: str
    part: tuple[int, int] = (0, 1)
    index: int | None = None

    @property
    def rule(self) -> LeafRule:
        return LeafRule(self.torch, self.jax, self.axes, self.part, reshape=True)

    @property
    def is_whole(self) -> bool:
        """Whether it is one whole tensor on either side."""
        return self.part[1] == 1 and self.index is None

    def to_jax(self, array: np.ndarray) -> np.ndarray:
        """PyTorch's whole tensor -> these numbers in flax's layout."""
        return self.rule.to_jax(array, self.jax_shape if self.index is None else self.jax_shape[1:])

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """The whole flax tensor -> these numbers in PyTorch's layout."""
        return self.rule.to_torch(array if self.index is None else array[self.index], self.torch_shape)


@dataclasses.dataclass(frozen=True)
class Ledger:
    """Every tensor of both models, once: `entries` are pairs, the rest has no partner on purpose."""

    entries: tuple[Entry, ...]
    torch_only: tuple[str, ...] = ()
    jax_only: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __str__(self) -> str:
        lines = [
            f"{e.torch} {list(e.torch_shape)} <-> {e.jax} {list(e.jax_shape)}"
            + (f" transposed {e.axes}" if e.axes else "")
            + (f" part {e.part[0] + 1} of {e.part[1]}" if e.part[1] > 1 else "")
            + (f" layer {e.index}" if e.index is not None else "")
            + f" {e.dtype}"
            for e in self.entries
        ]
        lines += [f"{name} only in PyTorch" for name in self.torch_only]
        lines += [f"{name} only in JAX" for name in self.jax_only]
        return "\n".join(lines)


def jax_variables(model: nnx.Module) -> dict[str, nnx.Variable]:
    """Dotted path -> variable, random-number state left out."""
    return {
        ".".join(map(str, path)): node
        for path, node in nnx.iter_graph(model)
        if isinstance(node, nnx.Variable) and not isinstance(node, nnx.RngState)
    }


class HasStateDict(Protocol):
    """A `torch.nn.Module`, for all that is needed of one here."""

    def state_dict(self) -> Mapping[str, Any]: ...


def build_ledger(source: HasStateDict | Mapping[str, Any], jax_model: nnx.Module, rules: Rules | None = None) -> Ledger:
    """Pairs the tensors of both sides by name, layer type and shape; changes nothing.

    Args:
        source: a PyTorch model or its tensors by name; of these only `shape` and `dtype` are read, so that numpy
            arrays or `jax.ShapeDtypeStruct`s in PyTorch's layout do as well.
        jax_model: the flax model, which may be abstract.
        rules: what the pair needs besides the built-in rules.

    Raises:
        ValueError: tensors without a partner, two that claim the same partner, or shapes that do not fit; all of them
            are listed at once.
    """
    rules = rules or Rules()
    state = source if isinstance(source, Mapping) else source.state_dict()
    variables = jax_variables(jax_model)
    wanted = _expected(jax_model, variables, rules)
    layers = {path: type(module).__name__ for path, module in _modules(jax_model)}

    entries, torch_only, problems = [], [], []
    taken: dict[tuple[str, int | None], str] = {}
    for name, tensor in state.items():
        path, _, leaf = name.rpartition(".")
        stacked_path, index = rules.stack_index(path)
        partners = wanted.get(_join(rules.jax_path(stacked_path), leaf), [])
        if not partners:
            if matches(name, (*TORCH_ONLY, *rules.torch_only)):
                torch_only.append(name)
            else:
                problems.append(f"{name} {list(tensor.shape)} of PyTorch has no partner in JAX")
        for jax_name, rule in partners:
            shape, jax_shape = tuple(tensor.shape), tuple(variables[jax_name].shape)
            if (jax_name, index) in taken:
                problems.append(f"{name} and {taken[jax_name, index]} of PyTorch both claim {jax_name}")
            elif (index is not None and index >= jax_shape[0]) or not rule.fits(shape, jax_shape[index is not None :]):
                problems.append(f"{name} {list(shape)} does not fit {jax_name} {list(jax_shape)}")
            else:
                layer = layers[jax_name.rpartition(".")[0]]
                dtype = str(tensor.dtype).removeprefix("torch.")
                entries.append(Entry(name, jax_name, layer, rule.axes, shape, jax_shape, dtype, rule.part, index))
            taken.setdefault((jax_name, index), name)
    claimed = {jax_name for jax_name, _ in taken}
    jax_only = [name for name in variables if name not in claimed]
    problems += [
        f"{name} {list(variables[name].shape)} of JAX has no partner in PyTorch"
        for name in jax_only
        if not matches(name, rules.jax_only)
    ]
    problems += _incomplete(taken.keys(), variables) if not problems else []
    if not entries and not problems:
        problems.append("there is no tensor on either side")
    if problems:
        raise ValueError(f"{len(problems)} tensors cannot be carried over: " + "; ".join(problems))
    return Ledger(tuple(entries), tuple(torch_only), tuple(jax_only))


def _incomplete(taken: Collection[tuple[str, int | None]], variables: Mapping[str, nnx.Variable]) -> list[str]:
    """Stacked flax tensors of which PyTorch does not fill every layer."""
    filled: dict[str, set[int]] = {}
    for name, index in taken:
        if index is not None:
            filled.setdefault(name, set()).add(index)
    return [
        f"{name} of JAX has {variables[name].shape[0]} layers, PyTorch fills {len(indices)}"
        for name, indices in filled.items()
        if len(indices) != variables[name].shape[0]
    ]


def _modules(model: nnx.Module) -> list[tuple[str, nnx.Module]]:
    return [(".".join(map(str, path)), module) for path, module in nnx.iter_modules(model)]


def _join(path: str, leaf: str) -> str:
    return f"{path}.{leaf}" if path else leaf


def _expected(
    model: nnx.Module, variables: Mapping[str, nnx.Variable], rules: Rules
) -> dict[str, list[tuple[str, LeafRule]]]:
    """PyTorch's name (in JAX's module path) -> the flax tensors that it fills, each with its rule.

    A rule may stand with the layer that owns the tensor or with one around it (attention, for its projections); the
    outermost speaks first.
    """
    modules = dict(_modules(model))
    found: dict[str, list[tuple[str, LeafRule]]] = {}
    for name in variables:
        parts = name.split(".")
        owner, rule = name.rpartition(".")[0], LeafRule(parts[-1], parts[-1])
        for depth in range(len(parts)):
            path, rest = ".".join(parts[:depth]), ".".join(parts[depth:])
            known = rules.leaf_rules(modules[path]) if path in modules else ()
            match = next((candidate for candidate in known if candidate.jax == rest), None)
            if match is not None:
                owner, rule = path, match
                break
        found.setdefault(_join(owner, rule.torch), []).append((name, rule))
    return found


def jax_arrays(ledger: Ledger, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """PyTorch's arrays by name -> flax's by name, every part and layer in its place."""
    found: dict[str, np.ndarray] = {}
    for entry in ledger:
        array = entry.to_jax(tensors[entry.torch])
        if entry.index is None:
            found[entry.jax] = array
        else:
            found.setdefault(entry.jax, np.empty(entry.jax_shape, array.dtype))[entry.index] = array
    return found


def torch_arrays(ledger: Ledger, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Flax's arrays by name -> PyTorch's by name; only those whose every part is there."""
    found: dict[str, np.ndarray] = {}
    for entry in ledger:
        if entry.jax not in arrays:
            continue
        array = entry.to_torch(arrays[entry.jax])
        index, parts = entry.part
        if parts == 1:
            found[entry.torch] = array
        else:
            whole = found.setdefault(entry.torch, np.empty(entry.torch_shape, array.dtype))
            whole.reshape(parts, -1, *entry.torch_shape[1:])[index] = array
    return found


def torch_twin(jax_model: nnx.Module, rules: Rules | None = None) -> dict[str, jax.ShapeDtypeStruct]:
    """The state dict of the PyTorch model that `jax_model` is the twin of: names, shapes and dtypes, without values.

    Raises:
        ValueError: a layer whose flax tensors do not tell PyTorch's shapes: cut in parts, reshaped or stacked.
    """
    rules = rules or Rules()
    variables = jax_variables(jax_model)
    found = {}
    for name, partners in _expected(jax_model, variables, rules).items():
        (jax_name, rule), *more = partners
        if more or rule.reshape or rules.stacked:
            raise ValueError(f"{jax_name} does not tell the shape of {name} in PyTorch: pass a PyTorch model")
        variable = variables[jax_name]
        axes = range(len(variable.shape)) if rule.axes is None else np.argsort(rule.axes)
        found[name] = jax.ShapeDtypeStruct(tuple(variable.shape[axis] for axis in axes), variable.dtype)
    return found
