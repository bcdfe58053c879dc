"""Lossless conversion of weights between PyTorch and Flax NNX: every tensor once and bit for bit, or none."""

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
from parity.carry.entries import Entry, Ledger
from parity.carry.ledger import build_ledger, identity, jax_variables
from parity.carry.model_types import jax_subject
from parity.carry.program import Adapter, Program
from parity.carry.rules import Rules, slices
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
    """Convert PyTorch's arrays by name to flax's arrays by name, assembling parts and stacked layers.

    Raises:
        ValueError: Parts of one flax array have different dtypes, so it could not hold all of them bit for bit; or a
            tensor that PyTorch adds to another one is not zero.
    """
    found: dict[str, np.ndarray] = {}
    for entry in ledger:
        array = entry.to_jax(tensors[entry.torch])
        if entry.added:
            if array.any():
                first = next(e.torch for e in ledger if e.jax == entry.jax and not e.added)
                raise ValueError(
                    f"{entry.torch} is not zero, and JAX has one bias in place of it and {first}: add it to {first} in "
                    "PyTorch and set it to zero first, which computes the same"
                )
            continue
        if entry.jax_box:
            entry.in_jax(_whole(found, entry.jax, entry.jax_shape, array))[...] = array
        else:
            found[entry.jax] = array
    return found


def torch_arrays(ledger: Ledger, arrays: Mapping[str, np.ndarray], *, gradients: bool = False) -> dict[str, np.ndarray]:
    """Convert flax's arrays by name to PyTorch's arrays by name.

    A tensor that PyTorch adds to another one becomes zero, and has that one's gradient. A PyTorch tensor split into
    several flax arrays needs all of them in `arrays`, or none.

    Raises:
        ValueError: Parts of one PyTorch tensor have different dtypes, so it could not hold all of them bit for bit.
    """
    found: dict[str, np.ndarray] = {}
    for entry in ledger:
        if entry.jax not in arrays:
            continue
        array = entry.to_torch(arrays[entry.jax])
        if entry.added and not gradients:
            array = np.zeros_like(array)
        if entry.torch_box:
            _whole(found, entry.torch, entry.torch_shape, array)[slices(entry.torch_box)] = array
        else:
            found[entry.torch] = array
    return found


def _whole(found: dict[str, np.ndarray], name: str, shape: tuple[int, ...], part: np.ndarray) -> np.ndarray:
    """Return the array `name` of `found` that contains `part`; it is allocated with the first part."""
    whole = found.setdefault(name, np.empty(shape, part.dtype))
    if whole.dtype != part.dtype:
        raise ValueError(f"the parts of {name} are {whole.dtype} and {part.dtype}: give them one dtype first")
    return whole


def torch_to_jax(
    source: torch.nn.Module | StateDict,
    jax_model: nnx.Module | Adapter,
    *,
    rules: Rules | None = None,
    cast: bool = False,
) -> Ledger:
    """Copy all tensors of a PyTorch model or state dict into `jax_model`, in place.

    Values are copied bit for bit: `jax_model` takes the dtypes of the source. While JAX's 64-bit types are disabled,
    64-bit integers that fit become 32-bit ones. With `cast`, `jax_model` keeps its own dtypes, and floats are rounded
    as needed. `jax_model` may be abstract (`nnx.eval_shape`). An adapter (`parity.linen` and the like) holds the new
    weights afterwards; what it was made of is not changed.

    Returns:
        The ledger of all tensors.

    Raises:
        ValueError: See `build_ledger`. Also raised for a tensor without values (meta, lazy, sparse, quantized), for
            values that do not fit, and for float64 tensors while JAX's 64-bit types are disabled. Nothing is changed
            then.
    """
    model = jax_subject(jax_model, "jax_model")
    ledger = build_ledger(source, model, rules)
    variables = jax_variables(model)
    found = jax_arrays(ledger, _read_torch(state_of(source), {entry.torch for entry in ledger}))
    types = {name: variables[name].dtype if cast else None for name in found}
    _set_all(variables, {name: _jax_array(name, array, types[name]) for name, array in found.items()})
    if isinstance(jax_model, Adapter) and isinstance(model, Program):
        jax_model.update(model)
    return ledger


def _read_torch(state: StateDict, names: Collection[str]) -> dict[str, np.ndarray]:
    """Read the tensors called `names` into numpy arrays.

    Raises:
        ValueError: Some tensors cannot be read; all of them are listed.
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
    """Convert `array` to a JAX array that never shares PyTorch's memory, in `dtype` or, by default, its own dtype.

    Raises:
        ValueError: The values do not fit that dtype.
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
    """Assign new values to the variables: all of them or none.

    Raises:
        ValueError: A variable rejects its value or changes it (a hook).
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
    jax_model: nnx.Module | Adapter, torch_model: torch.nn.Module, *, rules: Rules | None = None, cast: bool = False
) -> Ledger:
    """Copy all tensors of `jax_model` into `torch_model`, in place, on its devices; see `torch_to_jax`.

    PyTorch tensors that share memory (tied, views of each other, expanded) are written if JAX's values agree on every
    shared element. 64-bit integers of PyTorch keep their dtype where JAX's are narrower.

    Raises:
        ValueError: See `torch_to_jax`. Also raised if tensors that share memory differ in JAX, and for tensors that
            cannot be written (meta device, sparse, quantized, inference mode). Nothing is changed then.
    """
    source = jax_subject(jax_model, "jax_model")
    ledger = build_ledger(torch_model, source, rules)
    model = unwrapped(torch_model)
    found = torch_arrays(ledger, _read_jax(jax_variables(source), ledger))
    tensors, again = _every_tensor(model), state_of(model)
    copies = [name for name in found if identity(again[name]) != identity(tensors[name])]
    raise_problems([f"{name} is made anew by state_dict(): what is written there is lost" for name in copies])
    write(tensors, found, cast=cast)
    return ledger


def _every_tensor(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return all tensors that may share memory with the state dict, including non-persistent buffers."""
    found = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    return found | {k: x for k, x in state_of(model).items() if isinstance(x, torch.Tensor)}


def _read_jax(variables: Mapping[str, nnx.Variable], ledger: Ledger) -> dict[str, np.ndarray]:
    """Read the flax tensors in the ledger into numpy arrays.

    Raises:
        ValueError: Some tensors have no values (an abstract model) or cannot be read (donated, traced); all are listed.
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
    """Return the PyTorch names of the tensors that differ between the models, bitwise or (integers) in value."""
    state = state_of(torch_model)
    theirs = torch_arrays(ledger, _read_jax(jax_variables(jax_model), ledger))
    return [name for name, array in theirs.items() if not same_numbers(to_numpy(state[name]), array)]
