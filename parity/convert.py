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
    """Dotted path -> variable, random-number state left out."""
    return {
        ".".join(map(str, path)): node
        for path, node in nnx.iter_graph(model)
        if isinstance(node, nnx.Variable) and not isinstance(node, nnx.RngState)
    }


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


def to_numpy(value: Any) -> np.ndarray:
    """A tensor or array of either framework as numpy, bit for bit (bfloat16 by way of ml_dtypes)."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        if value.dtype == torch.bfloat16:
            return value.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return value.numpy()
    return np.asarray(value)


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """The inverse of `to_numpy`: a tensor with memory of its own."""
    array = np.array(array, copy=True, order="C")
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


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
        value = jnp.asarray(array, dtype=variables[name].dtype if cast else None)
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
    """Carries all tensors of `jax_model` into `torch_model`, in place, on its devices; see `torch_to_jax`."""
    ledger = build_ledger(torch_model, jax_model, rules)
    variables = jax_variables(jax_model)
    tensors = torch_model.state_dict(keep_vars=True)
    found = torch_arrays(ledger, {entry.jax: np.asarray(variables[entry.jax][...]) for entry in ledger})
    with torch.no_grad():
        for name, array in found.items():
            target = tensors[name]
            value = to_tensor(array).to(target.device)
            if cast or value.dtype == target.dtype:
                target.copy_(value)
            else:
                target.data = value
    return ledger


def as_dtype(jax_model: nnx.Module, dtype: Any) -> nnx.Module:
    """A copy of `jax_model` that stores and computes in `dtype`, whatever its layers were set to."""
    model = nnx.clone(jax_model)
    for _, variable in nnx.iter_graph(model):
        if isinstance(variable, nnx.Variable) and jnp.issubdtype(variable.dtype, jnp.floating):
            variable.set_value(jnp.asarray(np.asarray(variable[...]).astype(dtype)))
    for _, module in nnx.iter_modules(model):
        for attribute in ("dtype", "param_dtype"):
            if getattr(module, attribute, None) is not None:
                setattr(module, attribute, dtype)
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
