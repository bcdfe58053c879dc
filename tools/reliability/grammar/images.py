"""Convolutions, pooling and what makes tokens or vectors of images."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import torch
from flax import nnx

from tools.reliability.grammar.node import (
    EMPTY,
    IMAGE,
    TOKENS,
    VECTOR,
    FlaxHalf,
    Format,
    Node,
    TorchHalf,
    UnfitError,
    array,
    fill,
    linear,
)


@dataclasses.dataclass(frozen=True, repr=False)
class Conv(Node):
    """A convolution of images; of tokens (B, N, C) with axes exchanged around it in PyTorch."""

    kinds = (TOKENS, IMAGE)
    to: int = 4
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    dilation: int = 1
    groups: int = 1
    bias: bool = True

    def out(self, given: Format) -> Format:
        self.check(given)
        if given.channels % self.groups or self.to % self.groups:
            raise UnfitError(f"{given.channels} channels are not {self.groups} groups")
        sides = [self._side(side) for side in (given.shape[1:] if given.kind == IMAGE else given.shape[:1])]
        if min(sides) < 1:
            raise UnfitError(f"{given} is too small for {self}")
        if given.kind == IMAGE:
            return Format(IMAGE, (self.to, *sides))
        return Format(TOKENS, (*sides, self.to), given.mask and tuple(sides) == given.shape[:1])

    def _side(self, side: int) -> int:
        return (side + 2 * self.padding - self.dilation * (self.kernel - 1) - 1) // self.stride + 1

    def mistakes(self, given: Format) -> tuple[str, ...]:
        found = ["kernel flipped"] if self.kernel > 1 else []
        found += ["bias missing"] if self.bias else []
        found += ["kernel transposed"] if self.kernel > 1 and given.kind == IMAGE else []
        found += ["padding SAME"] if self._same(given) and self.kernel > 1 else []
        found += ["padding repeated"] if self.padding else []
        found += ["groups interleaved"] if 1 < self.groups < given.channels else []
        return tuple(found)

    def _same(self, given: Format) -> bool:
        """Whether flax's SAME gives the same shape."""
        sides = given.shape[1:] if given.kind == IMAGE else given.shape[:1]
        return all(self._side(side) == -(-side // self.stride) for side in sides)

    def build(self, given: Format) -> torch.nn.Module:
        sizes = (given.channels, self.to, self.kernel, self.stride, self.padding, self.dilation, self.groups, self.bias)
        return torch.nn.Conv2d(*sizes) if given.kind == IMAGE else TorchConv1d(sizes)

    def port(self, given: Format, twin: Any) -> nnx.Module:
        rank = 2 if given.kind == IMAGE else 1
        conv = self._conv(given, twin if rank == 2 else twin.conv, rank)
        return conv if rank == 2 else FlaxConv1d(conv)

    def _conv(self, given: Format, twin: Any, rank: int) -> nnx.Conv:
        module: Any = nnx.Conv(
            given.channels,
            self.to,
            (self.kernel,) * rank,
            strides=self.stride,
            padding="SAME" if self.own == "padding SAME" else self.padding,
            kernel_dilation=self.dilation,
            feature_group_count=self.groups,
            use_bias=self.bias,
            rngs=nnx.Rngs(0),
            **EMPTY,
        )
        fill(module.kernel, twin.weight, (*range(2, 2 + rank), 1, 0))
        if self.bias:
            fill(module.bias, twin.bias)
        if self.own and self.own != "padding SAME":
            module.__class__, module.node = WrongConv, self
        return module


class WrongConv(nnx.Conv):
    node: Conv

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        node, rank, kernel = self.node, x.ndim - 2, self.kernel[...]
        pads = [(node.padding, node.padding)] * rank
        if node.own == "kernel flipped":
            kernel = jnp.flip(kernel, tuple(range(rank)))
        elif node.own == "kernel transposed":
            kernel = kernel.swapaxes(0, 1)
        elif node.own == "groups interleaved":
            x = x.reshape(*x.shape[:-1], -1, node.groups).swapaxes(-1, -2).reshape(x.shape)
        elif node.own == "padding repeated":
            x, pads = jnp.pad(x, [(0, 0), *pads, (0, 0)], mode="edge"), [(0, 0)] * rank
        letters = "HW"[:rank]
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            (node.stride,) * rank,
            pads,
            rhs_dilation=(node.dilation,) * rank,
            dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
            feature_group_count=node.groups,
        )
        return y if self.bias is None or node.own == "bias missing" else y + self.bias[...]


@dataclasses.dataclass(frozen=True, repr=False)
class ConvTranspose(Node):
    """Transposed convolution of images; flax pads what PyTorch cuts off."""

    kinds = (IMAGE,)
    to: int = 4
    kernel: int = 2
    stride: int = 2
    padding: int = 0

    def out(self, given: Format) -> Format:
        self.check(given)
        sides = [(side - 1) * self.stride - 2 * self.padding + self.kernel for side in given.shape[1:]]
        if min(sides) < 1 or self.kernel <= self.padding:
            raise UnfitError(f"{given} is too small for {self}")
        return Format(IMAGE, (self.to, *sides))

    def mistakes(self, given: Format) -> tuple[str, ...]:
        return ("bias missing", *(("kernel as it is", "kernel transposed") if self.kernel > 1 else ()))

    def build(self, given: Format) -> torch.nn.Module:
        return torch.nn.ConvTranspose2d(given.channels, self.to, self.kernel, self.stride, self.padding)

    def port(self, given: Format, twin: Any) -> nnx.Module:
        pads = [(self.kernel - 1 - self.padding,) * 2] * 2
        sizes = (given.channels, self.to, (self.kernel,) * 2)
        module: Any = nnx.ConvTranspose(*sizes, strides=(self.stride,) * 2, padding=pads, rngs=nnx.Rngs(0), **EMPTY)
        module.kernel.set_value(jnp.asarray(array(twin.weight).transpose(2, 3, 0, 1)[::-1, ::-1].copy()))
        fill(module.bias, twin.bias)
        if self.own:
            module.__class__, module.wrong = WrongConvTranspose, self.own
        return module


class WrongConvTranspose(nnx.ConvTranspose):
    wrong: str

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...]
        kernel = {"kernel as it is": kernel[::-1, ::-1], "kernel transposed": kernel.swapaxes(0, 1)}.get(
            self.wrong, kernel
        )
        y = jax.lax.conv_transpose(x, kernel, self.strides, self.padding)  # type: ignore[arg-type]
        return y if self.bias is None or self.wrong == "bias missing" else y + self.bias[...]


class TorchConv1d(torch.nn.Module):
    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.conv = torch.nn.Conv1d(*sizes)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


class FlaxConv1d(nnx.Module):
    def __init__(self, conv: nnx.Conv) -> None:
        self.conv = conv

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(x)


@dataclasses.dataclass(frozen=True, repr=False)
class Pool(Node):
    """Largest or mean of windows; no module in flax, where it is a function."""

    kinds = (IMAGE,)
    largest: bool = True
    window: int = 2
    stride: int = 2
    padding: int = 0

    def out(self, given: Format) -> Format:
        self.check(given)
        sides = [(side + 2 * self.padding - self.window) // self.stride + 1 for side in given.shape[1:]]
        if min(sides) < 1:
            raise UnfitError(f"{given} is too small for {self}")
        return Format(IMAGE, (given.channels, *sides))

    def mistakes(self, given: Format) -> tuple[str, ...]:
        padded = () if not self.padding else ("padded with zeros",) if self.largest else ("padding not counted",)
        return (*padded, "mean for the largest" if self.largest else "largest for the mean")

    def build(self, given: Format) -> torch.nn.Module:
        kind = torch.nn.MaxPool2d if self.largest else torch.nn.AvgPool2d
        return kind(self.window, self.stride, self.padding)


class FlaxPool(FlaxHalf, of=Pool):
    def __call__(self, x: jax.Array) -> jax.Array:
        node, wrong = self.node, self.wrong
        window, strides, pads = (node.window,) * 2, (node.stride,) * 2, ((node.padding,) * 2,) * 2
        if wrong == "padded with zeros":
            x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
            return nnx.max_pool(x, window, strides, "VALID")
        if node.largest != (wrong in ("mean for the largest", "largest for the mean")):
            return nnx.max_pool(x, window, strides, pads)
        return nnx.avg_pool(x, window, strides, pads, count_include_pad=wrong != "padding not counted")


@dataclasses.dataclass(frozen=True, repr=False)
class SqueezeExcite(Node):
    kinds = (IMAGE,)
    wrongs = ("mean of one row", "activation", "largest for the mean", "gate missing")
    hidden: int = 2


class TorchSqueezeExcite(TorchHalf, of=SqueezeExcite):
    def __init__(self, node: SqueezeExcite, given: Format) -> None:
        super().__init__(node, given)
        self.fc1 = torch.nn.Linear(given.channels, node.hidden)
        self.fc2 = torch.nn.Linear(node.hidden, given.channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


class FlaxSqueezeExcite(FlaxHalf, of=SqueezeExcite):
    def __init__(self, node: SqueezeExcite, given: Format, twin: TorchSqueezeExcite) -> None:
        super().__init__(node, given, twin)
        self.fc1, self.fc2 = linear(twin.fc1), linear(twin.fc2)

    def __call__(self, x: jax.Array) -> jax.Array:
        wrong = self.wrong
        mean = {"mean of one row": x[:, 0].mean(1), "largest for the mean": x.max((1, 2))}.get(wrong, x.mean((1, 2)))
        hidden = self.fc1(mean)
        gate = jax.nn.sigmoid(self.fc2(jnp.tanh(hidden) if wrong == "activation" else jax.nn.relu(hidden)))
        return x if wrong == "gate missing" else x * gate[:, None, None]


@dataclasses.dataclass(frozen=True, repr=False)
class ToTokens(Node):
    """Every pixel of an image a token, row by row."""

    kinds = (IMAGE,)
    wrongs = ("column by column", "channels as tokens")

    def out(self, given: Format) -> Format:
        self.check(given)
        channels, height, width = given.shape
        return Format(TOKENS, (height * width, channels))


class TorchToTokens(TorchHalf, of=ToTokens):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).transpose(1, 2)


class FlaxToTokens(FlaxHalf, of=ToTokens):
    def __call__(self, x: jax.Array) -> jax.Array:
        B, H, W, C = x.shape
        if self.wrong == "channels as tokens":
            return x.reshape(B, C, H * W).swapaxes(1, 2)
        return (x.swapaxes(1, 2) if self.wrong == "column by column" else x).reshape(B, H * W, C)


@dataclasses.dataclass(frozen=True, repr=False)
class ToVector(Node):
    """An image to a vector: the mean of all pixels, or all numbers in PyTorch's order."""

    kinds = (IMAGE,)
    flat: bool = False

    def out(self, given: Format) -> Format:
        self.check(given)
        channels, height, width = given.shape
        return Format(VECTOR, (channels * height * width if self.flat else channels,))

    def mistakes(self, given: Format) -> tuple[str, ...]:
        return ("flax's order",) if self.flat else ("sum", "largest")

    def build(self, given: Format) -> torch.nn.Module:
        return torch.nn.Flatten() if self.flat else TorchMeanPixel()


class TorchMeanPixel(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


class FlaxToVector(FlaxHalf, of=ToVector):
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.node.flat:
            return (x if self.wrong == "flax's order" else x.transpose(0, 3, 1, 2)).reshape(x.shape[0], -1)
        return {"sum": x.sum((1, 2)), "largest": x.max((1, 2))}.get(self.wrong, x.mean((1, 2)))
