"""Computation in another dtype than that of the parameters, like the argument `dtype` of the models in `t2t_jax`.

All weights, images and layer outputs are rounded to this dtype. (`torch.autocast` would keep layer norms, softmax and
the residual stream in float32.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

UNROUNDED = "w"
"""Name of the performer's random features, which are used in float32 exponentials; they are never rounded."""


def in_dtype(arrays: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Return a model's `arrays` (by dotted name) rounded to `dtype`, differentiably; None leaves them unchanged."""
    if dtype is None:
        return dict(arrays)
    return {name: x if name.rpartition(".")[2] == UNROUNDED else x.to(dtype) for name, x in arrays.items()}


class WithComputeDtype(nn.Module):
    """Wrapper that rounds the weights of `model` to `dtype` in every call; (B, C, H, W) -> output of the model.

    `options` are passed to the model (`mix`).
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, images_BxCxHxW: Tensor, **options: Any) -> Any:
        if self.dtype is None:
            return self.model(images_BxCxHxW, **options)
        weights = in_dtype(dict(self.model.named_parameters()), self.dtype)
        return functional_call(self.model, weights, (images_BxCxHxW.to(self.dtype),), options)
