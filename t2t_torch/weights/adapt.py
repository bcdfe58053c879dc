"""Adapt a checkpoint's tensors to another model (see `t2t_common.weights.adapt`).

Twin: t2t_jax/weights/adapt.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from t2t_common.weights.adapt import adapt
from t2t_config.text import few
from t2t_config.weights.load_report import check_types
from t2t_torch.weights.positions import resize_pos_embed

StateDict = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class AdaptedWeights:
    """Weights adapted to a model, and the changes made (see `LoadReport`)."""

    weights: StateDict
    resized: Mapping[str, str]
    left_out: tuple[str, ...]
    missing: tuple[str, ...]


def adapt_weights(
    state_dict: Mapping[str, Tensor], model: nn.Module, source_grid: tuple[int, int] | None = None
) -> AdaptedWeights:
    """Return `state_dict` adapted to `model`; both are unchanged. Changed tensors get the wider of both dtypes.

    Raises:
        ValueError: Names or shapes do not match and cannot be adapted (the message counts them and names the first
            few), or a dtype is invalid for weights (complex, integer).
    """
    own = model.state_dict()
    check_types({name: str(x.dtype).removeprefix("torch.") for name, x in state_dict.items() if name in own})

    def dtype_of(name: str) -> torch.dtype:
        return torch.promote_types(state_dict[name].dtype, own[name].dtype)

    def resize(table: np.ndarray, *sizes: tuple[int, int], num_prefix_tokens: int) -> np.ndarray:
        """Resize in the wider dtype with PyTorch's own operation, bitwise identical to the authors' code."""
        tensor = torch.from_numpy(table).to(dtype_of("pos_embed"))
        return resize_pos_embed(tensor, *sizes, num_prefix_tokens=num_prefix_tokens).double().numpy()

    adapted = adapt(
        lambda name: state_dict[name].detach().double().cpu().numpy(),
        {name: tuple(value.shape) for name, value in state_dict.items()},
        {name: tuple(value.shape) for name, value in own.items()},
        grid=cast(tuple[int, int], getattr(model, "grid_size", (0, 0))),
        num_prefix_tokens=cast(int, getattr(model, "num_prefix_tokens", 1)),
        source_grid=source_grid,
        resize=resize,
    )
    weights = {name: value for name, value in state_dict.items() if name not in adapted.left_out}
    for name, value in adapted.changed.items():
        weights[name] = torch.from_numpy(value).to(dtype_of(name))
    _check_fit(weights, {name: value for name, value in own.items() if name not in adapted.missing})
    return AdaptedWeights(weights, adapted.resized, adapted.left_out, adapted.missing)


def _check_fit(weights: StateDict, own: StateDict) -> None:
    """Raise a single ValueError for all differences in names and shapes between `weights` and `own`."""
    problems = {
        "missing": [name for name in own if name not in weights],
        "unexpected": [name for name in weights if name not in own],
        "of another shape": [
            f"{name} {tuple(weights[name].shape)} instead of {tuple(value.shape)}"
            for name, value in own.items()
            if name in weights and weights[name].shape != value.shape
        ],
    }
    found = [f"{len(names)} {what} ({few(names)})" for what, names in problems.items() if names]
    if found:
        raise ValueError(", ".join(found))
