"""Conversion between a model and flat dictionaries of arrays by dotted name, such as `blocks.0.attn.qkv.kernel`.

All code that trains, saves or averages weights works on these plain pytrees; the module is rebuilt from its graph
definition when it is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from t2t_config.text import few
from t2t_jax.models.scan_blocks import is_stacked, stack_arrays, unstack_arrays

Arrays = dict[str, jax.Array]


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef, Arrays, Arrays]:
    """Return the graph definition, the trained parameters, and all other arrays (frozen tensors) of `model`."""
    graphdef, *states = nnx.split(model, nnx.Param, ...)
    params, buffers = states
    return graphdef, _flat(params), _flat(buffers)


def model_arrays(model: nnx.Module) -> Arrays:
    """Return all arrays of `model`, trained and frozen, with stacked blocks unstacked as in files."""
    return unstack_arrays(_flat(nnx.state(model)))


def merge_model(graphdef: nnx.GraphDef, arrays: Mapping[str, Any]) -> Any:
    """Return the model with this graph definition and these arrays; inverse of `split_model`."""
    return nnx.merge(graphdef, _nested(arrays))


def load_arrays(model: nnx.Module, arrays: Mapping[str, Any], *, fresh: tuple[str, ...] = ()) -> None:
    """Load `arrays` into `model`, in place and in the model's own dtypes; arrays named in `fresh` keep their values.

    Blocks may be stacked or unstacked in both.

    Raises:
        ValueError: Arrays are missing, unknown, or of another shape; the message names some of each. The model
            is unchanged.
    """
    own, arrays = model_arrays(model), unstack_arrays(arrays)
    missing = [name for name in own if name not in arrays and name not in fresh]
    unknown = [name for name in arrays if name not in own]
    shared = [name for name in own if name in arrays and name not in fresh]
    misfits = [
        f"{name} {np.shape(arrays[name])} instead of {own[name].shape}"
        for name in shared
        if np.shape(arrays[name]) != own[name].shape
    ]
    problems = {"missing": missing, "unknown": unknown, "of another shape": misfits}
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {few(names)}" for kind, names in problems.items() if names)
        raise ValueError(f"these weights belong to another model or size: {listed}")
    loaded = {name: np.asarray(arrays[name]).astype(own[name].dtype) for name in shared}
    has_stack = any(map(is_stacked, _flat(nnx.state(model))))
    nnx.update(model, _nested(stack_arrays(loaded) if has_stack else loaded))


def _flat(state: nnx.State) -> Arrays:
    return {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def _nested(arrays: Mapping[str, Any]) -> nnx.State:
    tree: dict[Any, Any] = {}
    for name, array in arrays.items():
        *parents, last = (int(part) if part.isdigit() else part for part in name.split("."))
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = array
    return nnx.State(tree)
