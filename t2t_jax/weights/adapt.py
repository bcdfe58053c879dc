"""Adapt a checkpoint's arrays to another model (see `t2t_common.weights.adapt`).

Twin: t2t_torch/weights/adapt.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from t2t_common.weights.adapt import adapt
from t2t_config.weights.load_report import check_types
from t2t_jax.state import model_arrays
from t2t_jax.weights.torch_file import from_torch, torch_axes, torch_name

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class AdaptedWeights:
    """Weights adapted to a model, and the changes made (see `LoadReport`)."""

    weights: Arrays
    resized: Mapping[str, str]
    left_out: tuple[str, ...]
    missing: tuple[str, ...]


def adapt_weights(
    arrays: Mapping[str, np.ndarray],
    model: nnx.Module,
    source_grid: tuple[int, int] | None = None,
    *,
    fresh_classifiers: bool = True,
) -> AdaptedWeights:
    """Return `arrays` adapted to `model`; both are unchanged. `load_arrays` checks that all other arrays match.

    Args:
        arrays: Arrays by this package's names.
        model: Model to adapt them to.
        source_grid: Grid of the position embedding; needed only if it is not square.
        fresh_classifiers: Whether to skip classifiers for another number of classes.

    Raises:
        ValueError: The position embedding is not square or not for `source_grid`, or a dtype is invalid for weights
            (complex, integer).
    """
    own: Mapping[str, Any] = model_arrays(model)
    check_types({name: array.dtype.name for name, array in arrays.items() if name in own})
    names = {torch_name(name): name for name in (*own, *arrays)}  # official name -> ours

    def read(name: str) -> np.ndarray:
        array = np.asarray(arrays[names[name]])
        return array.transpose(torch_axes(names[name], array.ndim)).astype(np.float64)

    adapted = adapt(
        read,
        _torch_shapes(arrays),
        _torch_shapes(own),
        grid=getattr(model, "grid_size", (0, 0)),
        num_prefix_tokens=getattr(model, "num_prefix_tokens", 1),
        source_grid=source_grid,
        fresh_classifiers=fresh_classifiers,
    )
    left_out = tuple(names[name] for name in adapted.left_out)
    return AdaptedWeights(
        {name: array for name, array in arrays.items() if name not in left_out} | from_torch(adapted.changed),
        {names[name]: how for name, how in adapted.resized.items()},
        left_out,
        tuple(names[name] for name in adapted.missing),
    )


def _torch_shapes(arrays: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return shapes by official name, in PyTorch's layouts."""
    return {
        torch_name(name): tuple(array.shape[axis] for axis in torch_axes(name, array.ndim))
        for name, array in arrays.items()
    }
