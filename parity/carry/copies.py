"""Copies of models converted to another precision."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen, nnx

from parity.carry.arrays import converted, is_integer
from parity.carry.program import Program


def as_dtype(jax_model: nnx.Module, dtype: Any) -> nnx.Module:
    """Return a copy of `jax_model` that stores and computes in `dtype`, whatever the dtypes of its layers.

    Complex tensors stay complex, with the precision that corresponds to `dtype`.
    """
    model = nnx.clone(jax_model)
    for _, variable in nnx.iter_graph(model):
        if not isinstance(variable, nnx.Variable):
            continue
        own = getattr(variable, "dtype", None)
        if (kind := _like(own, dtype)) is not None:
            variable.set_value(jnp.asarray(np.asarray(variable[...]).astype(kind)))
        elif own is not None and is_integer(own) and (held := jax.dtypes.canonicalize_dtype(own)) != own:
            # 64-bit integers while JAX's 64-bit types are disabled: convert exactly or raise.
            variable.set_value(jnp.asarray(converted(np.asarray(variable[...]), held)))
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Program):
            module.compute_in(dtype)
        for attribute in ("dtype", "param_dtype"):
            # A static lookup, so that properties and attributes synthesized by a wrapper are not set.
            if (kind := _like(inspect.getattr_static(module, attribute, None), dtype)) is not None:
                setattr(module, attribute, kind)
        for name, value in list(vars(module).items()):
            if isinstance(value, linen.Module):
                setattr(module, name, linen_as_dtype(value, dtype))
    return model


def _like(kind: Any, dtype: Any) -> Any:
    """Return the dtype that replaces `kind` in a run in `dtype`; None if `kind` is not a floating or complex type."""
    try:
        if kind is None or not jnp.issubdtype(kind, jnp.inexact):
            return None
    except TypeError:
        return None
    if jnp.issubdtype(kind, jnp.complexfloating):
        return jnp.dtype(jnp.complex128 if jnp.dtype(dtype) == jnp.float64 else jnp.complex64)
    return dtype


def linen_as_dtype(module: linen.Module, dtype: Any) -> linen.Module:
    """Return a copy of a Linen module (held by `nnx.bridge.ToNNX`) that computes in `dtype`, as do its submodules."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(module):
        value = getattr(module, field.name, None)
        if field.name in ("dtype", "param_dtype") and (kind := _like(value, dtype)) is not None:
            changes[field.name] = kind
        elif isinstance(value, linen.Module) and field.name != "parent":
            changes[field.name] = linen_as_dtype(value, dtype)
    return module.clone(**changes) if changes else module


def torch_copy(model: torch.nn.Module, dtype: torch.dtype | None = None) -> torch.nn.Module:
    """Return a copy of a PyTorch model, in `dtype` if given; complex tensors stay complex in that precision.

    Plain tensors that a module computed and keeps (the weight of the old `weight_norm`) are copied by value.

    Raises:
        ValueError: Part of the model cannot be copied; the message names it.
    """
    memo: dict[int, Any] = {id(x): x.detach().clone() for module in model.modules() for x in _computed(vars(module))}
    functions = (x for module in model.modules() for x in vars(module).values())
    memo |= {id(x): x for x in functions if isinstance(x, torch.jit.ScriptFunction)}  # they are immutable
    try:
        found = copy.deepcopy(model, memo)
    except Exception as error:
        raise ValueError(
            f"{_uncopied(model)} cannot be copied ({str(error)[:100]}): take it off for the check"
        ) from error
    if dtype is None:
        return found
    complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64

    def moved(x: torch.Tensor) -> torch.Tensor:
        return x.to(complex_dtype if x.is_complex() else dtype) if x.is_complex() or x.is_floating_point() else x

    return found._apply(moved)


def _computed(value: Any, depth: int = 3) -> Iterator[torch.Tensor]:
    """Yield non-leaf tensors in attributes and plain containers: `copy.deepcopy` does not support them."""
    if isinstance(value, torch.Tensor):
        if value.requires_grad and not value.is_leaf:
            yield value
    elif depth and isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _computed(item, depth - 1)


def _uncopied(model: torch.nn.Module) -> str:
    """Return the attribute of the innermost module that cannot be copied."""
    for path, module in reversed(list(model.named_modules())):
        for name, value in vars(module).items():
            try:
                if name not in ("_modules", "_parameters", "_buffers"):
                    copy.deepcopy(value, {id(x): x for x in _computed(value)})
            except Exception:
                return f"{name} of {path or 'the model'} in PyTorch"
    return "the model of PyTorch"
