"""Weights carried between PyTorch and Flax NNX without loss: every tensor once, bit for bit, or not at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch
from flax import nnx

from parity.dtypes import in_precision
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


StateDict = Mapping[str, torch.Tensor]


def jax_variables(model: nnx.Module) -> dict[str, nnx.Variable]:
    """Dotted path -> variable, random-number state left out.

    Raises:
        ValueError: two paths are the same once they are dotted (`a.b` of a dict, and `b` in its `a`).
    """
    found: dict[str, nnx.Variable] = {}
    for path, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Variable) and not isinstance(node, nnx.RngState):
            name = ".".join(map(str, path))
            if name in found:
                raise ValueError(f"two tensors of JAX are called {name}: rename one, without dots in its name")
            found[name] = node
    return found


def build_ledger(source: torch.nn.Module | StateDict, jax_model: nnx.Module, rules: Rules | None = None) -> Ledger:
    """Pairs the tensors of both sides by name, layer type and shape; changes nothing.

    Raises:
        ValueError: tensors without a partner, two that claim the same partner, or shapes that do not fit; all of them
            are listed at once.
    """
    rules = rules or Rules()
    state = source.state_dict() if isinstance(source, torch.nn.Module) else source
    variables = jax_variables(jax_model)
    wanted = _expected(jax_model, variables, rules)
    layers = {path: type(module).__name__ for path, module in _modules(jax_model)}

    entries, torch_only = [], []
    problems = [
        f"{name} of JAX holds a {type(variable.get_value()).__name__}, not an array"
        for name, variable in variables.items()
        if _shape(variable) is None and not matches(name, rules.jax_only)
    ]
    taken: dict[tuple[str, int | None], str] = {}
    for name, tensor in state.items():
        path, _, leaf = name.rpartition(".")
        stacked_path, index = rules.stack_index(path)
        partners = wanted.get(_join(rules.jax_path(stacked_path), leaf), [])
        shape = _shape(tensor)
        if not partners and matches(name, (*TORCH_ONLY, *rules.torch_only)):
            torch_only.append(name)
        elif shape is None:
            problems.append(f"{name} of PyTorch is a {type(tensor).__name__}, not a tensor")
        elif not partners:
            problems.append(f"{name} {list(shape)} of PyTorch has no partner in JAX")
        else:
            problems += _unlike_parts(name, partners)
        for jax_name, rule in partners:
            jax_shape = _shape(variables[jax_name])
            if (jax_name, index) in taken:
                problems.append(f"{name} and {taken[jax_name, index]} of PyTorch both claim {jax_name}")
            elif shape is not None and jax_shape is not None and not _fits(rule, shape, jax_shape, index):
                problems.append(f"{name} {list(shape)} does not fit {jax_name} {list(jax_shape)}")
            elif shape is not None and jax_shape is not None:
                layer = _around(jax_name, layers)
                dtype = str(tensor.dtype).removeprefix("torch.")
                entries.append(Entry(name, jax_name, layer, rule.axes, shape, jax_shape, dtype, rule.part, index))
            taken.setdefault((jax_name, index), name)
    claimed = {jax_name for jax_name, _ in taken}
    jax_only = [name for name in variables if name not in claimed]
    problems += [
        f"{name} {list(shape)} of JAX has no partner in PyTorch"
        for name in jax_only
        if (shape := _shape(variables[name])) is not None and not matches(name, rules.jax_only)
    ]
    problems += _incomplete(taken.keys(), variables)
    if not entries and not problems:
        problems.append("there is no tensor on either side")
    if problems:
        raise ValueError(f"{len(problems)} tensors cannot be carried over: " + "; ".join(problems))
    return Ledger(tuple(entries), tuple(torch_only), tuple(jax_only))


def _shape(tensor: Any) -> tuple[int, ...] | None:
    """Shape of a tensor or variable, None of one that holds something else."""
    shape = getattr(tensor, "shape", None)
    return None if shape is None else tuple(shape)


def _fits(rule: LeafRule, shape: tuple[int, ...], jax_shape: tuple[int, ...], index: int | None) -> bool:
    """Whether a PyTorch tensor is a flax one by `rule`, or its layer `index`."""
    if index is None:
        return rule.fits(shape, jax_shape)
    return bool(jax_shape) and index < jax_shape[0] and rule.fits(shape, jax_shape[1:])


def _around(name: str, layers: Mapping[str, str]) -> str:
    """The type of the innermost module around a tensor, which dicts and lists may separate from it."""
    while name not in layers:
        name = name.rpartition(".")[0]
    return layers[name]


def _unlike_parts(name: str, partners: list[tuple[str, LeafRule]]) -> list[str]:
    """What is wrong if `partners` are not together, and each once, the tensor `name`."""
    parts = [rule.part for _, rule in partners]
    count = parts[0][1]
    if sorted(parts) == [(i, count) for i in range(count)]:
        return []
    return [f"{name} of PyTorch is not whole, and once, in {', '.join(partner for partner, _ in partners)} of JAX"]


def _incomplete(taken: Collection[tuple[str, int | None]], variables: Mapping[str, nnx.Variable]) -> list[str]:
    """Stacked flax tensors of which PyTorch does not fill every layer."""
    filled: dict[tuple[str, int], set[int]] = {}
    for name, index in taken:
        shape = _shape(variables[name])
        if index is not None and shape:
            filled.setdefault((name, shape[0]), set()).update({index} & set(range(shape[0])))
    return [
        f"{name} of JAX has {layers} layers, PyTorch fills {len(indices)}"
        for (name, layers), indices in filled.items()
        if len(indices) != layers
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
    """PyTorch's arrays by name -> flax's by name, every part and layer in its place.

    Raises:
        ValueError: layers of one flax array differ in dtype, so that it could not hold the bits of all.
    """
    found: dict[str, np.ndarray] = {}
    for entry in ledger:
        array = entry.to_jax(tensors[entry.torch])
        if entry.index is None:
            found[entry.jax] = array
        else:
            _whole(found, entry.jax, entry.jax_shape, array)[entry.index] = array
    return found


def torch_arrays(ledger: Ledger, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Flax's arrays by name -> PyTorch's by name; those that have any part in `arrays` need all of theirs there.

    Raises:
        ValueError: parts of one PyTorch tensor differ in dtype, so that it could not hold the bits of all.
    """
    found: dict[str, np.ndarray] = {}
    for entry in ledger:
        if entry.jax not in arrays:
            continue
        array = entry.to_torch(arrays[entry.jax])
        index, parts = entry.part
        if parts == 1:
            found[entry.torch] = array
        else:
            rows, *rest = entry.torch_shape
            whole = _whole(found, entry.torch, entry.torch_shape, array)
            whole.reshape(parts, rows // parts, *rest)[index] = array
    return found


def _whole(found: dict[str, np.ndarray], name: str, shape: tuple[int, ...], part: np.ndarray) -> np.ndarray:
    """The array `name` of `found` that takes `part` in, made if this is the first."""
    whole = found.setdefault(name, np.empty(shape, part.dtype))
    if whole.dtype != part.dtype:
        raise ValueError(f"the parts of {name} are {whole.dtype} and {part.dtype}: give them one dtype first")
    return whole


def to_numpy(value: Any) -> np.ndarray:
    """A tensor or array of either framework as numpy, bit for bit (bfloat16 and float8 by way of ml_dtypes)."""
    if isinstance(value, torch.Tensor):
        extended = _beyond_numpy(str(value.dtype).removeprefix("torch."))
        if extended is not None:
            bits = torch.int8 if value.element_size() == 1 else torch.int16
            return value.detach().cpu().contiguous().view(bits).numpy().view(extended)
        return value.numpy(force=True)
    return np.asarray(value)


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """The inverse of `to_numpy`: a tensor with memory of its own."""
    array = np.array(array, copy=True, order="C")
    if _beyond_numpy(array.dtype.name) is not None:
        return torch.from_numpy(array.view(f"i{array.itemsize}")).view(getattr(torch, array.dtype.name))
    return torch.from_numpy(array)


def _beyond_numpy(name: str) -> Any:
    """The numpy type of that name that ml_dtypes adds, None for numpy's own."""
    return getattr(ml_dtypes, name, None)


def torch_to_jax(
    source: torch.nn.Module | StateDict,
    jax_model: nnx.Module,
    *,
    rules: Rules | None = None,
    cast: bool = False,
) -> Ledger:
    """Carries all tensors of a PyTorch model or state dict into `jax_model`, in place.

    The bits are carried: `jax_model` takes on the source's dtypes. With `cast`, it keeps its own, rounding as needed.
    `jax_model` may be abstract (`nnx.eval_shape`).

    Returns:
        The ledger of every tensor.

    Raises:
        ValueError: see `build_ledger`; or float64 tensors while JAX has 64-bit types switched off. Nothing is
            changed then.
    """
    ledger = build_ledger(source, jax_model, rules)
    state = source.state_dict() if isinstance(source, torch.nn.Module) else source
    variables = jax_variables(jax_model)
    found = jax_arrays(ledger, {entry.torch: to_numpy(state[entry.torch]) for entry in ledger})
    arrays = {}
    for name, array in found.items():
        value = jnp.array(array, dtype=variables[name].dtype if cast else None)  # a copy, never PyTorch's memory
        if not cast and value.dtype != array.dtype:
            raise ValueError(
                f"{name} is {array.dtype}, which JAX holds only with jax_enable_x64: switch it on, or pass "
                "cast=True to round to the model's own dtype"
            )
        arrays[name] = value
    for name, value in arrays.items():
        variables[name].set_value(value)
    return ledger


def jax_to_torch(
    jax_model: nnx.Module, torch_model: torch.nn.Module, *, rules: Rules | None = None, cast: bool = False
) -> Ledger:
    """Carries all tensors of `jax_model` into `torch_model`, in place, on its devices; see `torch_to_jax`.

    Raises:
        ValueError: also where PyTorch ties tensors (two names of the same memory) that differ in JAX.
    """
    ledger = build_ledger(torch_model, jax_model, rules)
    variables = jax_variables(jax_model)
    tensors = torch_model.state_dict(keep_vars=True)
    found = torch_arrays(ledger, {entry.jax: np.asarray(variables[entry.jax][...]) for entry in ledger})
    _check_tied(found, tensors)
    with torch.no_grad():
        for name, array in found.items():
            target = tensors[name]
            value = to_tensor(array).to(target.device)
            if cast or value.dtype == target.dtype:
                target.copy_(value)
            else:
                target.data = value
    return ledger


def _check_tied(found: Mapping[str, np.ndarray], tensors: StateDict) -> None:
    """Raises ValueError if two of `found` would be written to the same memory of PyTorch, and differ."""
    first: dict[int, str] = {}
    for name, array in found.items():
        if not (tensors[name].numel() and tensors[name].data_ptr()):  # empty, or on the device "meta"
            continue
        other = first.setdefault(tensors[name].data_ptr(), name)
        if not _same_bits(array, found[other]):
            raise ValueError(f"{other} and {name} are one tensor in PyTorch and differ in JAX: untie or average them")


def as_dtype(jax_model: nnx.Module, dtype: Any) -> nnx.Module:
    """A copy of `jax_model` that stores and computes in `dtype`, whatever they were set to; complex if they are."""
    model = nnx.clone(jax_model)
    for _, variable in nnx.iter_graph(model):
        if isinstance(variable, nnx.Variable) and jnp.issubdtype(variable.dtype, jnp.inexact):
            variable.set_value(jnp.asarray(np.asarray(variable[...]).astype(in_precision(variable.dtype, dtype))))
    for _, module in nnx.iter_modules(model):
        for attribute in ("dtype", "param_dtype"):
            if getattr(module, attribute, None) is not None:
                setattr(module, attribute, in_precision(getattr(module, attribute), dtype))
    return model


def state_equal(ledger: Ledger, torch_model: torch.nn.Module, jax_model: nnx.Module) -> list[str]:
    """Names (PyTorch's) of the tensors whose bits differ between the two models."""
    state, variables = torch_model.state_dict(), jax_variables(jax_model)
    theirs = torch_arrays(
        ledger, {entry.jax: np.asarray(jax.device_get(variables[entry.jax][...])) for entry in ledger}
    )
    return [name for name, array in theirs.items() if not _same_bits(to_numpy(state[name]), array)]


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
