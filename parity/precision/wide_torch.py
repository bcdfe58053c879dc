"""Run a PyTorch model in higher precision: requests for a narrower format get the run's precision instead.

A `TorchFunctionMode` sees every function that a model's Python code calls on tensors. In a float64 run it turns
`x.float()`, `x.to(torch.float32)`, `softmax(x, dim=-1, dtype=torch.float32)`, `torch.arange(n)` and the like into
float64, and records where. Autocast needs no handling: it does not change float64 tensors.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from parity.precision.casts import Cast, is_library, place, wider

SHORTHANDS = {"float": "float32", "half": "float16", "bfloat16": "bfloat16", "cfloat": "complex64"}
"""Tensor methods that cast."""

TYPES = {"FloatTensor": "float32", "HalfTensor": "float16", "BFloat16Tensor": "bfloat16"}
"""Arguments that `x.type(...)` accepts besides a dtype."""

AS_THEY_ARE = frozenset({"__get__", "__set__", "view", "__setitem__", "set_", "numpy", "data_ptr", "is_floating_point"})
"""Functions that must not be widened: attribute access, bit reinterpretation, writes into a table."""


class Wide(TorchFunctionMode):
    """Mode that widens narrow formats to `precision` and records them in `casts` and `tables`."""

    def __init__(self, precision: str) -> None:
        super().__init__()
        self.precision = precision
        self.casts: list[Cast] = []
        self.tables: dict[tuple[str, int], np.ndarray] = {}
        self.scalars: set[float] = set()
        self.open: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in AS_THEY_ARE or _in_search(sys._getframe(1)):
            return func(*args, **kwargs)
        if name == "hardsigmoid" and not (kwargs.get("inplace") or any(args[1:])):
            # By its formula: PyTorch's derivative has 1 / 6 in float32, whatever the input's dtype.
            return torch.nn.functional.relu6(args[0] + 3) / 6
        self.scalars.update(x for x in (*args, *kwargs.values()) if type(x) is float)
        if name in SHORTHANDS and args and isinstance(args[0], torch.Tensor):
            # A copy, as a cast makes: Muon then works on it in place.
            func, args = torch.Tensor.to, (args[0], getattr(torch, SHORTHANDS[name]))
            kwargs = {**kwargs, "copy": wider(SHORTHANDS[name], self.precision) is not None}
        given = next((x for x in (*args, *kwargs.values()) if self._asked(x)), None)
        if given is None:
            args, kwargs = self._whole(name, args), self._whole(name, kwargs)
            return self._made(name, func(*args, **kwargs), args, kwargs)
        first = args[0] if args and isinstance(args[0], torch.Tensor) else None
        anew = name.startswith("new_") or name.endswith("_like")
        self._note(self._asked(given) or "", made=anew or first is None or not _floating(first))
        args = tuple(self._widened(x) for x in args)
        return func(*self._whole(name, args), **{key: self._widened(self._whole(name, x)) for key, x in kwargs.items()})

    def _asked(self, value: Any) -> str | None:
        """Return the narrow format that an argument requests."""
        if isinstance(value, torch.dtype):
            format_ = str(value).removeprefix("torch.")
        else:
            name = value if isinstance(value, str) else getattr(value, "__name__", "")
            format_ = TYPES.get(name.removeprefix("torch."), "")
        return format_ if wider(format_, self.precision) else None

    def _widened(self, value: Any) -> Any:
        format_ = self._asked(value)
        return value if format_ is None else getattr(torch, wider(format_, self.precision) or "")

    def _whole(self, name: str, tree: Any) -> Any:
        """Widen the narrow tensors among the arguments, which were made before the run."""
        if name.endswith("_") and not name.endswith("__"):
            return tree  # in place: a copy would discard the result
        leaves, spec = pytree.tree_flatten(tree)
        if not any(isinstance(x, torch.Tensor) and self._format(x) for x in leaves):
            return tree
        return pytree.tree_unflatten([self._lifted(x) for x in leaves], spec)

    def _format(self, tensor: torch.Tensor) -> str | None:
        return wider(str(tensor.dtype).removeprefix("torch."), self.precision)

    def _lifted(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not self._format(value):
            return value
        whole = value.to(getattr(torch, self._format(value) or ""))
        if self.open and not value.requires_grad and not value.is_complex():
            self.tables.setdefault((self.open[-1], value.data_ptr()), whole.detach().cpu().double().numpy())
        return whole

    def _made(self, name: str, output: Any, args: Any, kwargs: Any) -> Any:
        """Record floats created in the default dtype from non-floating inputs: float32 in a float32 run."""
        if isinstance(output, torch.Tensor) and _floating(output) and self.precision == "float64":
            tensors = [x for x in pytree.tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor | torch.dtype)]
            if not any(isinstance(x, torch.dtype) or _floating(x) for x in tensors):
                self._note("float32", made=True)
        return output

    def leave(self) -> None:
        self.open.pop()

    def _note(self, format_: str, *, made: bool) -> None:
        if self.open:
            cast = Cast(self.open[-1], format_, _where(), made)
            self.casts += [cast] if cast not in self.casts else []


def _floating(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _in_search(frame: FrameType | None) -> bool:
    """Return whether the caller is the search for causes, which rounds deliberately, and not the model."""
    while frame is not None and frame.f_code.co_filename.startswith(_TORCH):
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename.startswith(_CAUSES) and frame.f_code.co_filename != _REPLAY


def _where() -> str:
    """Return the running line of the model's own code; "" if all frames are PyTorch's."""
    frame = sys._getframe(2)
    while frame.f_code.co_filename == __file__ and frame.f_back is not None:
        frame = frame.f_back
    while frame.f_back is not None and not frame.f_code.co_filename.startswith(_PARITY):
        if not is_library(frame.f_code.co_filename):
            return place(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return ""


_PARITY = str(Path(__file__).parents[1]) + "/"
_TORCH = str(Path(torch.__file__).parent) + "/"
_CAUSES = _PARITY + "causes/"
_REPLAY = _CAUSES + "replay.py"
"""Module that runs the model's own functions again."""


@contextlib.contextmanager
def wide(precision: str, model: torch.nn.Module | None = None) -> Iterator[Wide]:
    """Context manager that runs PyTorch wide; with `model`, also records the module of each narrow format."""
    mode, default, handles = Wide(precision), torch.get_default_dtype(), []
    for path, module in model.named_modules() if model is not None else ():
        handles.append(module.register_forward_pre_hook(lambda *_, path=path: mode.open.append(path)))
        handles.append(module.register_forward_hook(lambda *_: mode.leave()))
    try:
        torch.set_default_dtype(getattr(torch, precision))
        with mode:
            yield mode
    finally:
        torch.set_default_dtype(default)
        for handle in handles:
            handle.remove()


def own_tables(model: torch.nn.Module, precision: str) -> list[tuple[str, np.ndarray]]:
    """Return (module, values) of non-persistent floating buffers that are narrower than `precision`."""
    found, saved = [], model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name not in saved and buffer.is_floating_point() and wider(str(buffer.dtype)[6:], precision):
            found.append((name.rpartition(".")[0], buffer.detach().cpu().double().numpy()))
    return found
