"""Layers and helpers that PyTorch does not provide.

Shapes: B batch, N tokens, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): drops the residual branch of random samples and rescales the others.

    Same as timm's `DropPath`: x * Bernoulli(1 - rate) / (1 - rate), one draw per sample; identity in evaluation mode.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        if self.rate == 1.0:
            return torch.zeros_like(x)
        keep = 1.0 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * (mask / keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


def init_weights(module: nn.Module) -> None:
    """Initialise `module` like upstream's `_init_weights`; for use with `Module.apply`.

    Linear weights are sampled from N(0, 0.02), LayerNorm weights are 1, biases are 0. The bounds of `trunc_normal_` are
    absolute in timm and in PyTorch: +-2, or 100 standard deviations. Convolutions keep PyTorch's default
    initialisation, as upstream.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def check_images(x: Tensor, in_chans: int, img_size: tuple[int, int]) -> None:
    """Raise ValueError unless `x` has a floating-point dtype and the shape (B, in_chans, *img_size)."""
    if x.ndim != 4 or tuple(x.shape[1:]) != (in_chans, *img_size):
        raise ValueError(
            f"expected images (B, {in_chans}, {img_size[0]}, {img_size[1]}), got {tuple(x.shape)}: resize the images, "
            "or create the model with their img_size and in_chans"
        )
    if not x.is_floating_point():
        kind = str(x.dtype).removeprefix("torch.")
        raise ValueError(f"expected floating-point images, got {kind}: scale them by 1/255 and normalise")
