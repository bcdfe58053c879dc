"""Shapes and other properties of the calls of both models, as needed for pairing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from parity.carry.arrays import dtype_name
from parity.recording.capture import Key, torch_hooks
from parity.recording.channels import Axes, ChannelAxes, Labels, channels_last_axes, channels_second, labels_of, mark
from parity.recording.structure import Form, flatten, form
from parity.runs.jax_side import JaxSide
from parity.runs.torch_side import TorchSide


@dataclasses.dataclass(frozen=True)
class Shapes:
    """One call, with shapes in place of tensors.

    Attributes:
        repeats: Whether each input is the same tensor object as the previous one.
        floating: Whether all outputs are floating or complex.
        complex: Whether each output is complex.
        form: Structure of the return value.
        dtypes: Dtypes of the floating outputs, e.g. "float32".
        kinds: Dtype of each output; "integer" for all integers, since JAX stores 64-bit ones in 32 bits.
        input_labels, output_labels: Known axis labels of PyTorch's tensors, see `parity.recording.channels`.
    """

    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    repeats: tuple[bool, ...] = ()
    floating: bool = True
    complex: tuple[bool, ...] = ()
    form: Form | None = None
    dtypes: str = ""
    kinds: tuple[str, ...] = ()
    input_labels: tuple[Labels | None, ...] = ()
    output_labels: tuple[Labels | None, ...] = ()


@dataclasses.dataclass(frozen=True)
class TorchShapes:
    """PyTorch's calls, and the modules whose own parameters were not used."""

    calls: dict[Key, Shapes]
    idle: tuple[str, ...]


def torch_shapes(side: TorchSide, arrays: Sequence[np.ndarray], axes: Sequence[Axes] = ()) -> TorchShapes:
    """Run the PyTorch model once and return the shapes of its calls. `axes` are the layouts of JAX's inputs.

    Raises:
        ValueError: The model does not run on these inputs.
    """
    found: dict[Key, Shapes] = {}
    given: dict[Key, tuple[Any, ...]] = {}
    forms: dict[Key, Form] = {}

    def before(key: Key, tensors: list[torch.Tensor]) -> None:
        repeats = tuple(i > 0 and tensor is tensors[i - 1] for i, tensor in enumerate(tensors))
        shapes = tuple(tuple(tensor.shape) for tensor in tensors)
        given[key] = shapes, repeats, tuple(map(labels_of, tensors))

    def after(key: Key, tensors: list[torch.Tensor]) -> None:
        inputs, repeats, input_labels = given.pop(key)
        moving = [x for x in tensors if x.is_floating_point() or x.is_complex()]
        found[key] = Shapes(
            inputs,
            tuple(tuple(tensor.shape) for tensor in tensors),
            repeats,
            len(moving) == len(tensors),
            tuple(x.is_complex() for x in tensors),
            forms.pop(key),
            _dtypes(map(dtype_name, moving)),
            tuple(_kind(dtype_name(x)) for x in tensors),
            input_labels,
            tuple(map(labels_of, tensors)),
        )

    inputs = side.inputs(arrays)
    for x, layout in zip(inputs, axes, strict=False):
        mark(x, None if layout is None else _labels(layout))
    used = UsedParameters()
    hooks = torch_hooks(side.model, before, after, returned=lambda key, output: forms.update({key: form(output)}))
    with hooks, torch.no_grad(), ChannelAxes(), used:
        try:
            side.apply(side.model, inputs)
        except Exception as error:  # any exception of third-party code
            raise ValueError(f"PyTorch's model cannot be run on these inputs: {first_line(error)}") from error
    return TorchShapes(found, used.idle_modules(side.model))


def _labels(axes: Sequence[int]) -> Labels | None:
    """Return the labels of an input that JAX takes in the layout `axes`: its last axis is the channels."""
    labels = "".join("B" if axis == axes[0] else "C" if axis == axes[-1] else "S" for axis in range(len(axes)))
    return labels if channels_last_axes(labels) == tuple(axes) else channels_second(len(axes))


class UsedParameters(TorchFunctionMode):
    """Mode that records which tensors are passed to any function."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[int] = set()

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        leaves, _ = flatten((args, kwargs))
        self._seen.update(id(x) for x in leaves if isinstance(x, torch.Tensor))
        return function(*args, **kwargs)

    def idle_modules(self, model: torch.nn.Module) -> tuple[str, ...]:
        """Return the modules whose own parameters were not used at all. Parameters in TorchScript are not tracked."""
        found = []
        for path, module in model.named_modules():
            own = [p for p in module.parameters(recurse=False) if p.numel()]
            hidden = isinstance(module, torch.jit.ScriptModule) or torch.nn.utils.parametrize.is_parametrized(module)
            if own and not hidden and not any(id(p) in self._seen for p in own):
                found.append(path)
        return tuple(found)


def jax_shapes(side: JaxSide, arrays: Sequence[np.ndarray]) -> dict[Key, Shapes]:
    """Return the shapes of the flax model's calls; nothing is computed."""
    calls, forms = side.shapes(arrays)
    return {
        key: Shapes(
            tuple(x.shape for x in call.inputs or []),
            tuple(x.shape for x in call.outputs),
            form=forms.get(key),
            dtypes=_dtypes(str(x.dtype) for x in call.outputs if jnp.issubdtype(x.dtype, jnp.inexact)),
            kinds=tuple(_kind(str(x.dtype)) for x in call.outputs),
        )
        for key, call in calls.items()
    }


def _dtypes(names: Any) -> str:
    return ", ".join(sorted(set(names)))


def _kind(dtype: str) -> str:
    return "integer" if dtype.startswith(("int", "uint")) else dtype


def first_line(error: Exception) -> str:
    """Return the type of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
