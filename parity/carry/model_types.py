"""Type checks of the models to compare (`torch.nn.Module`, `flax.nnx.Module`), with advice for other types."""

from __future__ import annotations

from typing import Any

import torch
from flax import nnx

from parity.carry.program import Adapter
from parity.carry.wrappers import unwrapped


def torch_subject(model: Any) -> torch.nn.Module:
    """Return the PyTorch model, unwrapped from `torch.compile` and data parallelism.

    Raises:
        ValueError: `model` is not a PyTorch model, or has uninitialized (lazy) parameters.
    """
    if isinstance(model, nnx.Module | Adapter):
        kind = "an adapter of a JAX model" if isinstance(model, Adapter) else "a flax.nnx.Module"
        raise ValueError(f"the first model is {kind}, the second has to be: exchange the two arguments")
    if not isinstance(model, torch.nn.Module):
        raise ValueError(f"the first model has to be a torch.nn.Module, not {_kind(model)}")
    model = unwrapped(model)
    lazy = [name for name, p in model.named_parameters() if isinstance(p, torch.nn.parameter.UninitializedParameter)]
    if lazy:
        raise ValueError(f"{lazy[0]} of PyTorch has no shape yet: run the model once on an example first")
    return model


SECOND = "the second model"


def jax_subject(model: Any, name: str = SECOND) -> nnx.Module:
    """Return the flax NNX model, unwrapped from `nnx.jit`, or an adapter as one; `name` is its name in error messages.

    Raises:
        ValueError: `model` is neither; for known libraries the message shows the line that makes an adapter.
    """
    if isinstance(model, Adapter):
        return model.as_nnx()
    inner = getattr(model, "__wrapped__", None)
    if not isinstance(model, nnx.Module) and isinstance(inner, nnx.Module):
        model = inner
    if isinstance(model, nnx.Module):
        return model
    if isinstance(model, torch.nn.Module):
        also = " too" if name == SECOND else ""
        raise ValueError(f"{name} is a torch.nn.Module{also}: it has to be a flax.nnx.Module")
    raise ValueError(f"{name} has to be a flax.nnx.Module, not {_kind(model)}{_remedy(model)}")


def _kind(model: Any) -> str:
    library = _library(model)
    name = type(model).__qualname__
    return f"{library}'s {name}" if library else f"an object of class {name}"


def _library(model: Any) -> str | None:
    """Return which known library the model's classes come from, without importing the library."""
    for base in type(model).__mro__:
        for library in ("flax.linen", "equinox", "haiku"):
            if base.__module__ == library or base.__module__.startswith(f"{library}."):
                return library
    return None


def _remedy(model: Any) -> str:
    """Return the line that makes an adapter of the model."""
    match _library(model):
        case "flax.linen":
            return ": write parity.linen(module, variables), with what module.init returned"
        case "equinox":
            return ": write parity.equinox(model)"
        case "haiku":
            with_state = hasattr(model, "_fields") and type(model).__name__ == "TransformedWithState"
            return f": write parity.haiku(transformed, params{', state' if with_state else ''})"
    if isinstance(model, nnx.State):
        return ": put the state into the model with nnx.update or nnx.merge first"
    if callable(model) or isinstance(model, dict | list | tuple):
        return ": write parity.function(f, params), for f(params, *inputs)"
    return ""
