"""Weights carried between PyTorch and Flax NNX without loss: every tensor once, bit for bit, or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch
from flax import nnx

from parity.ledger import Entry, Ledger, build_ledger, jax_arrays, jax_variables, torch_arrays
from parity.rules import Rules

StateDict = Mapping[str, torch.Tensor]


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
