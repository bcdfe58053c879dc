"""Inputs of a pair of models, and the layouts in which JAX may take them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import torch

from parity.carry.convert import to_numpy
from parity.carry.rules import Rules, matches
from parity.recording.align import possible_input_axes
from parity.recording.channels import Axes
from parity.recording.structure import Rebuild, flatten


class Inputs:
    """Arguments of both models, in PyTorch's layout: `Inputs(x, mask=mask)` calls `model(x, mask=mask)`.

    Arrays may be numpy, PyTorch or JAX arrays, also nested in tuples and dicts; numbers, strings and None are passed
    unchanged.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs

    @classmethod
    def of(cls, inputs: Any) -> Inputs:
        """Make `Inputs` from one array, a tuple or list of arguments, a mapping of keyword arguments, or `Inputs`."""
        if isinstance(inputs, Inputs):
            return inputs
        if isinstance(inputs, Mapping):
            return cls(**inputs)
        return cls(*inputs) if isinstance(inputs, tuple | list) else cls(inputs)


Apply = Callable[[Any, Sequence[Any]], Any]
"""Function that calls a model with tensors in place of the arrays."""


def positional(model: Any, tensors: Sequence[Any]) -> Any:
    """Call the model with each tensor as a positional argument."""
    return model(*tensors)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The arrays of `Inputs`, and a function that calls a model with tensors in their place."""

    arrays: tuple[np.ndarray, ...]
    apply: Apply

    @classmethod
    def of(cls, inputs: Any) -> Arguments:
        """Extract the arrays; floating ones are rounded to float32 and stored in float64, so both precisions agree.

        Raises:
            ValueError: There is no array, or one is empty or not finite.
        """
        given = Inputs.of(inputs)
        leaves, rebuild = flatten((given.args, given.kwargs))
        places = [i for i, leaf in enumerate(leaves) if _is_array(leaf)]
        arrays = tuple(_rounded(to_numpy(leaves[i])) for i in places)
        if not arrays or any(x.size == 0 for x in arrays):
            raise ValueError("there is nothing to run on: the inputs are empty")
        for i, x in enumerate(arrays):
            if x.dtype.kind not in "biufc":
                raise ValueError(f"input {i} holds {x.dtype}: pass numbers, booleans or None")
            if not np.isfinite(x).all():
                raise ValueError(
                    f"the inputs hold NaN or infinity (input {i}, in float32): use a large finite number in a mask"
                )
        simple = not given.kwargs and places == list(range(len(given.args)))
        return cls(arrays, positional if simple else _with_leaves(leaves, places, rebuild))


def _with_leaves(leaves: Sequence[Any], places: Sequence[int], rebuild: Rebuild) -> Apply:
    def apply(model: Any, tensors: Sequence[Any]) -> Any:
        given = dict(zip(places, tensors, strict=True))
        args, kwargs = rebuild([given.get(i, leaf) for i, leaf in enumerate(leaves)])
        return model(*args, **kwargs)

    return apply


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor | jax.Array | np.ndarray | np.generic)


def _rounded(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "c":
        return array.astype(np.complex64).astype(np.complex128)
    if array.dtype.kind == "f" or array.dtype.name in ("bfloat16", "float16"):
        with np.errstate(over="ignore"):
            return array.astype(np.float32).astype(np.float64)
    return array


def input_layouts(arrays: Sequence[np.ndarray], rules: Rules) -> Iterator[tuple[Axes, ...]]:
    """Yield every combination of layouts in which JAX may take the inputs, the default one first.

    A rule for "input i" determines the layout of that input; one for the model itself ("") is only tried first.
    """
    yield from itertools.product(*(_layouts(f"input {i}", x.ndim, rules) for i, x in enumerate(arrays)))


def _layouts(name: str, rank: int, rules: Rules) -> list[Axes]:
    for pattern, axes in rules.layouts.items():
        if pattern.startswith("input ") and matches(name, [pattern]) and (axes is None or len(axes) == rank):
            return [axes]
    # A rule for the model itself also covers its outputs, so it may not be meant for this input.
    own = [axes for pattern, axes in rules.layouts.items() if pattern == "" and (axes is None or len(axes) == rank)]
    return list(dict.fromkeys([*own, *possible_input_axes(rank)]))
