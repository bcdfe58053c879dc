"""Models that are run by a function of the user: `torch_call(model, *inputs)` and `jax_call(model, *inputs)`."""

from __future__ import annotations

import copy
import threading
import types
from collections.abc import Callable
from typing import Any

import torch
from flax import nnx

Call = Callable[..., Any]
"""Function of a model and its inputs that runs the model and returns what is compared."""


def torch_called(model: torch.nn.Module, call: Call | None) -> torch.nn.Module:
    """Return a model with the same weights whose call is `call(model, *args, **kwargs)`; None: `model` itself.

    The model's own call within `call` is not a module call of its own, so it is neither recorded nor replaced.

    Raises:
        ValueError: `call` is not a function, or the model is not written in Python (TorchScript).
    """
    if call is None:
        return model
    _require_function("torch_call", call)
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("torch_call takes a model written in Python, not one of torch.jit: give the original model")
    found, kind, running = copy.copy(model), type(model), _Running()

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return running.once(kind.forward, call, self, *args, **kwargs)

    def own_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return (kind.forward if running.now else kind.__call__)(self, *args, **kwargs)

    found.__class__ = _subclass(kind, forward=forward, __call__=own_call)
    return found


def jax_called(model: nnx.Module, call: Call | None) -> nnx.Module:
    """As `torch_called`, for a flax model.

    Raises:
        ValueError: `call` is not a function.
    """
    if call is None:
        return model
    _require_function("jax_call", call)
    found, kind, running = nnx.clone(model), type(model), _Running()

    def own_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return running.once(kind.__call__, call, self, *args, **kwargs)

    found.__class__ = _subclass(kind, __call__=own_call)
    return found


def _require_function(name: str, call: Any) -> None:
    if not callable(call):
        raise ValueError(f"{name} has to be a function of the model and its inputs, not a {type(call).__name__}")


def _subclass(kind: type, **methods: Any) -> type:
    """Return a subclass with the same name: reports show it."""
    found = types.new_class(kind.__name__, (kind,), exec_body=lambda space: space.update(methods))
    found.__module__, found.__qualname__ = kind.__module__, kind.__qualname__
    return found


class _Running(threading.local):
    """Whether the user's function is running in this thread."""

    now = False

    def once(self, inner: Call, outer: Call, *args: Any, **kwargs: Any) -> Any:
        """Call `outer`, and `inner` for calls within it."""
        if self.now:
            return inner(*args, **kwargs)
        self.now = True
        try:
            return outer(*args, **kwargs)
        finally:
            self.now = False
