"""Type checks of the models to compare (`torch.nn.Module`, `flax.nnx.Module`), with advice for other types."""

from __future__ import annotations

from typing import Any

import torch
from flax import nnx

from parity.carry.wrappers import unwrapped


def torch_subject(model: Any) -> torch.nn.Module:
    """Return the PyTorch model, unwrapped from `torch.compile` and data parallelism.

    Raises:
        ValueError: `model` is not a PyTorch model, or has uninitialized (lazy) parameters.
    """
    if isinstance(model, nnx.Module):
        raise ValueError("the first model is a flax.nnx.Module, the second has to be: exchange the two arguments")
    if not isinstance(model, torch.nn.Module):
        raise ValueError(f"the first model has to be a torch.nn.Module, not {_kind(model)}")
    model = unwrapped(model)
    lazy = [name for name, p in model.named_parameters() if isinstance(p, torch.nn.parameter.UninitializedParameter)]
    if lazy:
        raise ValueError(f"{lazy[0]} of PyTorch has no shape yet: run the model once on an example first")
    return model


SECOND = "the second model"


def jax_subject(model: Any, name: str = SECOND) -> nnx.Module:
    """Return the flax NNX model, unwrapped from `nnx.jit`; `name` is its name in error messages.

    Raises:
        ValueError: `model` is not a flax NNX model; for known libraries the message explains how to convert it.
    """
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
    """Return advice on how to convert the model to a `flax.nnx.Module`."""
    match _library(model):
        case "flax.linen":
            return ": wrap it, flax.nnx.bridge.ToNNX(module, rngs=nnx.Rngs(0)) and nnx.bridge.lazy_init(wrapped, x)"
        case "equinox":
            return ": keep its arrays as nnx.Param in an nnx.Module whose __call__ puts them back with equinox.combine"
        case "haiku":
            return ": keep its params as nnx.Param in an nnx.Module whose __call__ calls transformed.apply"
    if isinstance(model, nnx.State):
        return ": put the state into the model with nnx.update or nnx.merge first"
    if callable(model) or isinstance(model, dict | list | tuple):
        return ": keep its parameters as nnx.Param in an nnx.Module whose __call__ calls the function"
    return ""
