"""U-Net with GroupNorm and transposed convolutions: PyTorch's ConvTranspose2d; Linen with a flipped kernel.

Shapes: B images, C channels, h w pixels.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import torch

from tests.foreign.pairs.common import Bug, ForeignPair, Side, array, conv, norm, normal, randomize

WIDTHS, GROUPS = (8, 12, 16), 4


class ConvBlock(torch.nn.Sequential):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__(
            torch.nn.Conv2d(inside, outside, 3, padding=1, bias=False),
            torch.nn.GroupNorm(GROUPS, outside),
            torch.nn.SiLU(),
            torch.nn.Conv2d(outside, outside, 3, padding=1, bias=False),
            torch.nn.GroupNorm(GROUPS, outside),
            torch.nn.SiLU(),
        )


class Down(torch.nn.Module):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.reduce, self.block = torch.nn.Conv2d(inside, inside, 3, 2, 1), ConvBlock(inside, outside)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(self.reduce(x))


class Up(torch.nn.Module):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.grow = torch.nn.ConvTranspose2d(inside, outside, 4, stride=2, padding=1)
        self.block = ConvBlock(2 * outside, outside)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.block(torch.cat([skip, self.grow(x)], dim=1))


class TorchUNet(torch.nn.Module):
    """(B, 3, h, w) -> (B, 2, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        a, b, c = WIDTHS
        self.stem, self.down1, self.down2 = ConvBlock(3, a), Down(a, b), Down(b, c)
        self.up1, self.up2, self.head = Up(c, b), Up(b, a), torch.nn.Conv2d(a, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.stem(x)
        second = self.down1(first)
        y = self.up1(self.down2(second), second)
        return self.head(self.up2(y, first))


class DoubleConv(nn.Module):
    width: int
    bug: str = ""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        groups = GROUPS // 2 if self.bug == "groups" else GROUPS
        x = nn.Conv(self.width, (3, 3), padding=1, use_bias=False, name="conv_a")(x)
        x = nn.GroupNorm(groups, epsilon=1e-5, use_fast_variance=False, name="norm_a")(x)  # bug: groups
        x = nn.Conv(self.width, (3, 3), padding=1, use_bias=False, name="conv_b")(nn.silu(x))
        x = nn.GroupNorm(GROUPS, epsilon=1e-5, use_fast_variance=False, name="norm_b")(x)
        return nn.silu(x)


class TransposedConv(nn.Module):
    """Stride 2, padding 1, with a kernel h w I O of which PyTorch's transposed convolution uses the mirror image."""

    width: int
    bug: str = ""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (4, 4, x.shape[-1], self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        flip = 1 if self.bug == "not_flipped" else -1
        x = jax.lax.conv_transpose(x, kernel[::flip, ::flip], (2, 2), ((2, 2), (2, 2)))  # bug: not_flipped
        return x + bias


class UNet(nn.Module):
    bug: str = ""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        skips = []
        for i, width in enumerate(WIDTHS):
            if i:
                skips.append(x)
                padding: Any = "SAME" if self.bug == "same_padding" and i == 2 else 1
                x = nn.Conv(x.shape[-1], (3, 3), 2, padding=padding, name=f"reduce{i}")(x)  # bug: same_padding
            x = DoubleConv(width, self.bug if i == 1 else "", name=f"encode{i}")(x)
        for i in (1, 0):
            x = TransposedConv(WIDTHS[i], self.bug if i == 0 else "", name=f"grow{i}")(x)
            x = DoubleConv(WIDTHS[i], name=f"decode{i}")(jnp.concatenate([skips[i], x], axis=-1))
        return nn.Conv(2, (1, 1), name="head")(x)


def converted(model: Any) -> dict[str, Any]:
    def block(layers: Any) -> dict[str, Any]:
        return {
            "conv_a": conv(layers[0]),
            "norm_a": norm(layers[1]),
            "conv_b": conv(layers[3]),
            "norm_b": norm(layers[4]),
        }

    def grow(layer: Any) -> dict[str, Any]:
        return {
            "kernel": jnp.asarray(array(layer.weight).transpose(2, 3, 0, 1)),
            "bias": jnp.asarray(array(layer.bias)),
        }

    params = {"encode0": block(model.stem), "head": conv(model.head)}
    for i, down in ((1, model.down1), (2, model.down2)):
        params |= {f"reduce{i}": conv(down.reduce), f"encode{i}": block(down.block)}
    for i, up in ((1, model.up1), (0, model.up2)):
        params |= {f"grow{i}": grow(up.grow), f"decode{i}": block(up.block)}
    return {"params": params}


PAIR = ForeignPair(
    name="unet_linen",
    file=__file__,
    torch_model=lambda seed: randomize(TorchUNet(), seed),
    jax_side=lambda model, bug: Side("linen", UNet(bug), converted(model), takes=((0, 2, 3, 1),), returns=(0, 3, 1, 2)),
    inputs=lambda seed: (normal(seed, 2, 3, 8, 12),),
    bugs={
        "not_flipped": Bug(("up2.grow",)),
        "groups": Bug(("down1.block.1",)),
        "same_padding": Bug(("down2.reduce",)),
    },
)
