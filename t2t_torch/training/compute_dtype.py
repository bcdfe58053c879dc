"""Computing in another precision than that of the parameters, as `dtype` of the models in `t2t_jax`.

Every weight and the images are rounded to it, and so is what each layer gives. (`torch.autocast` would leave layer
norms, softmax and the residual stream in float32.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

WIDE = "w"
"""The performer's random features, which float32 exponentials are made of; they are never rounded."""


def in_dtype(arrays: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """`arrays` of a model by dotted name, rounded to `dtype`; None leaves them as they are. Gradients come through."""
    if dtype is None:
        return dict(arrays)
    return {name: x if name.rpartition(".")[2] == WIDE else x.to(dtype) for name, x in arrays.items()}


class Computing(nn.Module):
    """`model` with its weights rounded to `dtype` in every call; (B, C, H, W) -> what the model gives.

    `options` are the model's own (`mix`).
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, images_BxCxHxW: Tensor, **options: Any) -> Any:
        if self.dtype is None:
            return self.model(images_BxCxHxW, **options)
        weights = in_dtype(dict(self.model.named_parameters()), self.dtype)
        return functional_call(self.model, weights, (images_BxCxHxW.to(self.dtype),), options)
