"""Find the layout of the JAX model's inputs by trial, since an array of rank 4 need not be an image."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import torch

from parity.carry.rules import Rules
from parity.measure.gates import rel_f
from parity.pairing.shapes import first_line
from parity.recording.capture import ROOT, NestedCallError
from parity.recording.channels import Axes, EntersChannels, channels_second, mark
from parity.recording.inputs import input_layouts
from parity.recording.transformations import with_paths
from parity.runs.jax_side import JaxSide
from parity.runs.torch_side import TorchSide

TRIED = 64
"""Maximum number of layout combinations to try."""

CLOSE = 1e-2
"""relF below which an output confirms a layout: far above rounding errors, far below the error of a wrong layout."""


def fitting_inputs(
    torch_side: TorchSide, jax_side: JaxSide, arrays: Sequence[np.ndarray], rules: Rules
) -> tuple[JaxSide, str | None]:
    """Return JAX's side with the layouts of its inputs (and with module paths, if needed), and a note.

    The default layout is used if JAX's model runs on it only. If it runs on several layouts, the one whose output
    equals PyTorch's is used; if there is none, the default one. An input of rank 3 is then transposed only if PyTorch's
    model passes it to a layer with channels second: otherwise a port that swaps both axes, or sums over the wrong one,
    would pass.

    Raises:
        ValueError: JAX's model runs on none of the layouts.
    """
    layouts = list(itertools.islice(input_layouts(arrays, rules), TRIED))
    found: list[JaxSide] = []
    errors: list[Exception] = []
    for axes in layouts:
        side = dataclasses.replace(jax_side, input_axes=axes)
        try:
            found.append(_runnable(side, arrays))
        except Exception as error:  # any exception of third-party code on unexpected inputs
            errors.append(error)
        if found:
            jax_side = dataclasses.replace(jax_side, model=found[0].model)
    if not found:
        raise ValueError(f"JAX's model cannot be run on these inputs: {first_line(errors[0])}") from errors[0]
    if len(found) == 1:
        return found[0], _note(found[0].input_axes, layouts[0])
    wanted = torch_side.forward(arrays, only={ROOT})[ROOT].outputs
    chosen = next((side for side in found if _close(side, arrays, wanted)), found[0])
    unknown = [i for i in _transposed(chosen.input_axes, layouts[0]) if not _enters_channels(torch_side, arrays, i)]
    if unknown:
        said = ", ".join(f'"input {i}": {chosen.input_axes[i]}' for i in unknown)
        return found[0], f"on transposed inputs both outputs agree: if these are meant, Rules(layouts={{{said}}})"
    return chosen, _note(chosen.input_axes, layouts[0])


def _transposed(axes: Sequence[Axes], usual: Sequence[Axes]) -> list[int]:
    """Return the indices of the inputs of rank 3 that are transposed, unlike in the default layout."""
    pairs = enumerate(zip(axes, usual, strict=True))
    return [i for i, (own, first) in pairs if own != first and own is not None and len(own) == 3]


def _enters_channels(side: TorchSide, arrays: Sequence[np.ndarray], index: int) -> bool:
    """Return whether PyTorch's model passes this input to a layer with channels second, such as a convolution."""
    inputs = side.inputs(arrays)
    mark(inputs[index], channels_second(inputs[index].ndim))
    with torch.no_grad(), EntersChannels() as seen:
        side.apply(side.model, inputs)
    return seen.found


def _runnable(side: JaxSide, arrays: Sequence[np.ndarray]) -> JaxSide:
    """Trace the model once and return the side, with module paths if the model needs them."""
    try:
        side.shapes(arrays)
    except NestedCallError:
        side = dataclasses.replace(side, model=with_paths(side.model))
        side.shapes(arrays)
    return side


def _close(side: JaxSide, arrays: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> bool:
    outputs = side.forward(arrays, only={ROOT})[ROOT].outputs
    if [x.shape for x in outputs] != [x.shape for x in wanted]:
        return False
    return all(_error(a, b) < CLOSE for a, b in zip(outputs, wanted, strict=True))


def _error(value: np.ndarray, reference: np.ndarray) -> float:
    if reference.dtype.kind in "fcV" and np.isfinite(reference.astype(np.complex128)).any():
        return rel_f(value, reference)
    return float(not np.array_equal(value, reference, equal_nan=reference.dtype.kind in "fc"))


def _note(axes: Sequence[Axes], usual: Sequence[Axes]) -> str | None:
    """Return a note on the inputs whose layout is not the default one."""
    other = [
        f"input {i} {'as it is' if own is None else f'transposed {own}'}"
        for i, (own, first) in enumerate(zip(axes, usual, strict=True))
        if own != first
    ]
    return f"JAX's model takes {', '.join(other)}" if other else None
