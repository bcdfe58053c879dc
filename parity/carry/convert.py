"""Weights carried between PyTorch and Flax NNX without loss: every tensor once, bit for bit, or not at all."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from parity.carry.arrays import converted, first_line, is_integer, same_numbers, to_numpy, to_tensor
from parity.carry.copies import as_dtype
from parity.carry.ledger import Entry, Ledger, build_ledger, identity, jax_variables
from parity.carry.model_types import jax_subject
from parity.carry.rules import Rules
from parity.carry.storage import raise_problems, unreadable, write
from parity.carry.wrappers import StateDict, state_of, unwrapped

__all__ = [
    "Entry",
    "Ledger",
    "StateDict",
    "as_dtype",
    "build_ledger",
    "jax_arrays",
    "jax_to_torch",
    "jax_variables",
    "state_equal",
    "to_numpy",
    "to_tensor",
    "torch_arrays",
    "torch_to_jax",
]


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


def torch_to_jax(
    source: torch.nn.Module | StateDict,
    jax_model: nnx.Module,
    *,
    rules: Rules | None = None,
    cast: bool = False,
) -> Ledger:
    """Carries all tensors of a PyTorch model or state dict into `jax_model`, in place.

    The bits are carried: `jax_model` takes on the source's dtypes. While JAX has 64-bit types switched off, 64-bit
    integers that fit become 32-bit ones. With `cast`, `jax_model` keeps its own dtypes, and floating numbers are
    rounded as needed. `jax_model` may be abstract (`nnx.eval_shape`).

    Returns:
        The ledger of every tensor.

    Raises:
        ValueError: see `build_ledger`; a tensor without numbers (meta, lazy, sparse, quantised); numbers that do not
            fit; or float64 tensors while JAX has 64-bit types switched off. Nothing is changed then.
    """
    jax_model = jax_subject(jax_model, "jax_model")
    ledger = build_ledger(source, jax_model, rules)
    variables = jax_variables(jax_model)
    found = jax_arrays(ledger, _read_torch(state_of(source), {entry.torch for entry in ledger}))
    types = {name: variables[name].dtype if cast else None for name in found}
    _set_all(variables, {name: _jax_array(name, array, types[name]) for name, array in found.items()})
    return ledger


def _read_torch(state: StateDict, names: Collection[str]) -> dict[str, np.ndarray]:
    """The numbers of these tensors.

    Raises:
        ValueError: some cannot be had; all are listed.
    """
    found, problems = {}, []
    for name in state:
        if name not in names:
            continue
        text = unreadable(state[name]) if isinstance(state[name], torch.Tensor) else None
        try:
            if text is None:
                found[name] = to_numpy(state[name])
        except (TypeError, RuntimeError) as error:
            text = f"cannot be read: {first_line(error)}"
        problems += [] if text is None else [f"{name} of PyTorch {text}"]
    raise_problems(problems)
    return found


def _jax_array(name: str, array: np.ndarray, dtype: Any) -> jax.Array:
    """`array` in JAX, never in PyTorch's memory, with its own dtype unless `dtype` is given.

    Raises:
        ValueError: it does not fit there.
    """
    held = jax.dtypes.canonicalize_dtype(array.dtype)
    try:
        if dtype is not None:
            array = converted(array, dtype)
        elif held != array.dtype and is_integer(held):
            array = converted(array, held)
    except ValueError as error:
        wide = is_integer(array.dtype) and held != array.dtype and (dtype is None or np.dtype(dtype) == held)
        advice = ", and JAX holds wider integers only with jax_enable_x64: switch it on" if wide else ""
        raise ValueError(f"{name}: {error}{advice}") from None
    value = jnp.array(array)
    if value.dtype != array.dtype:
        raise ValueError(
            f"{name} is {array.dtype}, which JAX holds only with jax_enable_x64: switch it on, or pass "
            "cast=True to round to the model's own dtype"
        )
    return value


def _set_all(variables: Mapping[str, nnx.Variable], arrays: Mapping[str, jax.Array]) -> None:
    """Gives the variables their new values: all of them or none.

    Raises:
        ValueError: one does not take its value, or changes it (a hook).
    """
    before: dict[str, Any] = {}
    try:
        for name, value in arrays.items():
            before[name] = variables[name].copy(_copy_ref=False)
            variables[name].set_value(value)
        for name, value in arrays.items():
            if not same_numbers(np.asarray(variables[name][...]), np.asarray(value)):
                raise ValueError(f"{name} of JAX does not keep what it is given: take its hooks off, or untie it")
    except BaseException as error:
        for name, old in before.items():
            variables[name].update_from_state(old)
        if isinstance(error, Exception):
            raise ValueError(f"{first_line(error)}: nothing was changed in JAX") from error
        raise


def jax_to_torch(
    jax_model: nnx.Module, torch_model: torch.nn.Module, *, rules: Rules | None = None, cast: bool = False
) -> Ledger:
    """Carries all tensors of `jax_model` into `torch_model`, in place, on its devices; see `torch_to_jax`.

    Tensors of PyTorch that share memory (tied, views of each other, expanded) get what JAX has for them as far as it
    agrees on every shared number. 64-bit integers of PyTorch stay so where JAX's are narrower.

    Raises:
        ValueError: also where tensors that share memory differ in JAX, and for tensors that cannot be written to (on
            the device meta, sparse, quantised, made in inference mode). Nothing is changed then.
    """
    jax_model = jax_subject(jax_model, "jax_model")
    ledger = build_ledger(torch_model, jax_model, rules)
    model = unwrapped(torch_model)
    found = torch_arrays(ledger, _read_jax(jax_variables(jax_model), ledger))
    tensors, again = _every_tensor(model), state_of(model)
    copies = [name for name in found if identity(again[name]) != identity(tensors[name])]
    raise_problems([f"{name} is made anew by state_dict(): what is written there is lost" for name in copies])
    write(tensors, found, cast=cast)
    return ledger


def _every_tensor(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All that may share memory with a tensor of the state dict: buffers that are not saved too."""
    found = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    return found | {k: x for k, x in state_of(model).items() if isinstance(x, torch.Tensor)}


def _read_jax(variables: Mapping[str, nnx.Variable], ledger: Ledger) -> dict[str, np.ndarray]:
    """The numbers of the flax tensors in the ledger.

    Raises:
        ValueError: some hold none (an abstract model), or cannot be read (donated, traced); all are listed.
    """
    found, problems = {}, []
    for name in dict.fromkeys(entry.jax for entry in ledger):
        try:
            if isinstance(variables[name].get_value(), jax.ShapeDtypeStruct):
                raise TypeError("it is abstract: initialise the model outside of nnx.eval_shape")
            found[name] = np.asarray(jax.device_get(variables[name][...]))
        except (TypeError, RuntimeError) as error:
            problems.append(f"{name} of JAX holds no numbers ({first_line(error)})")
    raise_problems(problems)
    return found


def state_equal(ledger: Ledger, torch_model: torch.nn.Module, jax_model: nnx.Module) -> list[str]:
    """Names (PyTorch's) of the tensors that differ between the two models: in a bit, or integers in their value."""
    state = state_of(torch_model)
    theirs = torch_arrays(ledger, _read_jax(jax_variables(jax_model), ledger))
    return [name for name, array in theirs.items() if not same_numbers(to_numpy(state[name]), array)]
