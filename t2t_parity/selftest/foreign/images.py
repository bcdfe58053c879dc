"""Convolutional networks: U-Net, ResNet bottleneck, and MobileNet inverted residual.

Images are (B, C, h, w) in PyTorch and (B, h, w, C) in JAX; output images have PyTorch's layout on both sides.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import torch
import torch.nn.functional as F
from flax import nnx

from parity.carry.rules import LeafRule, Rules
from t2t_parity.selftest.foreign.architecture import Architecture, channels_first, normal

C = 8


def conv(ins: int, outs: int, size: int, rngs: nnx.Rngs, **options: Any) -> nnx.Conv:
    """Return a convolution with an explicit padding of (size - 1) / 2 on every side."""
    return nnx.Conv(ins, outs, (size, size), padding=size // 2, rngs=rngs, **options)


# ---- U-Net ----


class TorchConvBlock(torch.nn.Module):
    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(ins, outs, 3, padding=1), torch.nn.GroupNorm(4, outs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.silu(self.norm(self.conv(x)))


class TorchUNet(torch.nn.Module):
    """Two downsamplings, then a transposed convolution and a bilinear upsampling; (B, 3, 8, 12) -> (B, 2, 8, 12)."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down = TorchConvBlock(3, C), torch.nn.Conv2d(C, C, 3, stride=2, padding=1)
        self.middle, self.up = TorchConvBlock(C, C), torch.nn.ConvTranspose2d(C, C, 2, stride=2)
        self.leave, self.out = TorchConvBlock(3 * C, C), torch.nn.Conv2d(C, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = self.enter(x)
        low = self.down(skip)
        deep = self.middle(F.max_pool2d(low, 2))
        deep = F.interpolate(deep, scale_factor=2, mode="bilinear", align_corners=False)
        wide = F.interpolate(low + deep, scale_factor=2, mode="nearest")
        return self.out(self.leave(torch.cat((skip, self.up(deep), wide), 1)))


class ConvBlock(nnx.Module):
    def __init__(self, ins: int, outs: int, rngs: nnx.Rngs) -> None:
        self.conv = conv(ins, outs, 3, rngs)
        self.norm = nnx.GroupNorm(outs, num_groups=4, epsilon=1e-5, use_fast_variance=False, rngs=rngs)

    def act(self, x: jax.Array) -> jax.Array:
        return jax.nn.silu(x)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.act(self.norm(self.conv(x)))


class UNet(nnx.Module):
    """Twin of `TorchUNet`."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.enter, self.down = ConvBlock(3, C, rngs), conv(C, C, 3, rngs, strides=2)
        self.middle = ConvBlock(C, C, rngs)
        self.up = nnx.ConvTranspose(C, C, (2, 2), strides=(2, 2), padding="VALID", transpose_kernel=True, rngs=rngs)
        self.leave, self.out = ConvBlock(3 * C, C, rngs), conv(C, 2, 1, rngs)

    def pool(self, x: jax.Array) -> jax.Array:
        return nnx.max_pool(x, (2, 2), strides=(2, 2))

    def smooth(self, x: jax.Array) -> jax.Array:
        """Bilinear upsampling by 2 with half-pixel centres (`align_corners=False`)."""
        return jax.image.resize(x, (x.shape[0], 2 * x.shape[1], 2 * x.shape[2], x.shape[3]), "bilinear")

    def blocky(self, x: jax.Array) -> jax.Array:
        return x.repeat(2, axis=1).repeat(2, axis=2)

    def joined(self, skip: jax.Array, up: jax.Array, wide: jax.Array) -> jax.Array:
        return jnp.concatenate((skip, up, wide), axis=-1)

    def image(self, x: jax.Array) -> jax.Array:
        return channels_first(x)

    def __call__(self, x: jax.Array) -> jax.Array:
        skip = self.enter(x)
        low = self.down(skip)
        deep = self.smooth(self.middle(self.pool(low)))
        wide = self.blocky(low + deep)
        return self.image(self.out(self.leave(self.joined(skip, self.up(deep), wide))))


UP = Rules(leaves={nnx.ConvTranspose: (LeafRule("weight", "kernel", (2, 3, 1, 0)), LeafRule("bias", "bias"))})
"""PyTorch (I, O, K, K) -> flax (K, K, O, I), as required by `transpose_kernel=True`."""


# ---- ResNet ----


class BatchNorm(nnx.BatchNorm):
    """Batch normalization with an unbiased running variance, as in PyTorch."""

    def __init__(self, channels: int, rngs: nnx.Rngs) -> None:
        super().__init__(channels, momentum=0.9, epsilon=1e-5, use_fast_variance=False, rngs=rngs)

    def __call__(self, x: jax.Array, *args: Any, **options: Any) -> jax.Array:
        old = self.var[...]
        y = super().__call__(x, *args, **options)
        if not self.use_running_average:
            count = x.size // x.shape[-1]
            self.var[...] += (self.var[...] - self.momentum * old) / (count - 1)
        return y


class TorchBottleneck(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = torch.nn.Conv2d(C, C // 2, 1, bias=False), torch.nn.BatchNorm2d(C // 2)
        self.conv2 = torch.nn.Conv2d(C // 2, C // 2, 3, stride=2, padding=1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(C // 2)
        self.conv3, self.bn3 = torch.nn.Conv2d(C // 2, C, 1, bias=False), torch.nn.BatchNorm2d(C)
        self.downsample = torch.nn.Sequential(torch.nn.Conv2d(C, C, 1, 2, bias=False), torch.nn.BatchNorm2d(C))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + self.downsample(x))


class TorchResNet(torch.nn.Module):
    """Stem and one bottleneck; (B, 3, 16, 12) -> (B, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, C, 3, stride=1, padding=1, bias=False)
        self.bn1, self.maxpool = torch.nn.BatchNorm2d(C), torch.nn.MaxPool2d(3, 2, 1)
        self.layer1 = torch.nn.Sequential(TorchBottleneck())
        self.fc = torch.nn.Linear(C, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        return self.fc(F.adaptive_avg_pool2d(self.layer1(x), 1).flatten(1))


class Bottleneck(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv1, self.bn1 = conv(C, C // 2, 1, rngs, use_bias=False), BatchNorm(C // 2, rngs)
        self.conv2, self.bn2 = conv(C // 2, C // 2, 3, rngs, strides=2, use_bias=False), BatchNorm(C // 2, rngs)
        self.conv3, self.bn3 = conv(C // 2, C, 1, rngs, use_bias=False), BatchNorm(C, rngs)
        self.downsample = nnx.Sequential(conv(C, C, 1, rngs, strides=2, use_bias=False), BatchNorm(C, rngs))

    def summed(self, y: jax.Array, shortcut: jax.Array) -> jax.Array:
        return jax.nn.relu(y + shortcut)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(jax.nn.relu(self.bn2(self.conv2(y)))))
        return self.summed(y, self.downsample(x))


class MaxPool(nnx.Module):
    def __init__(self) -> None:
        self.padding: Any = ((1, 1), (1, 1))

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=self.padding)


class ResNet(nnx.Module):
    """Twin of `TorchResNet`."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv1, self.bn1, self.maxpool = conv(3, C, 3, rngs, use_bias=False), BatchNorm(C, rngs), MaxPool()
        self.layer1 = nnx.Sequential(Bottleneck(rngs))
        self.fc = nnx.Linear(C, 5, rngs=rngs)

    def act(self, x: jax.Array) -> jax.Array:
        return jax.nn.relu(x)

    def pooled(self, x: jax.Array) -> jax.Array:
        return x.mean((1, 2))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.maxpool(self.act(self.bn1(self.conv1(x))))
        return self.fc(self.pooled(self.layer1(x)))


IN_SEQUENCE = Rules(rename={r"\b(layer1|downsample)\.(\d+)": r"\1.layers.\2"})
"""flax stores the modules of a `Sequential` in its attribute `layers`."""


# ---- MobileNet ----


class TorchSqueeze(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = torch.nn.Conv2d(2 * C, C // 2, 1), torch.nn.Conv2d(C // 2, 2 * C, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1))))
        return x * F.relu6(gate + 3) / 6  # F.hardsigmoid uses 1 / 6 in float32 in its derivative


class TorchInverted(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand, self.bn1 = torch.nn.Conv2d(C, 2 * C, 1, bias=False), torch.nn.BatchNorm2d(2 * C)
        self.depthwise = torch.nn.Conv2d(2 * C, 2 * C, 3, padding=1, groups=2 * C, bias=False)
        self.bn2, self.se = torch.nn.BatchNorm2d(2 * C), TorchSqueeze()
        self.project, self.bn3 = torch.nn.Conv2d(2 * C, C, 1, bias=False), torch.nn.BatchNorm2d(C)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.hardswish(self.bn1(self.expand(x)))
        y = self.se(F.hardswish(self.bn2(self.depthwise(y))))
        return x + self.bn3(self.project(y))


class TorchMobileNet(torch.nn.Module):
    """Strided stem with ReLU6 and one inverted residual; (B, 3, 8, 12) -> (B, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = torch.nn.Conv2d(3, C, 3, stride=2, padding=1, bias=False), torch.nn.BatchNorm2d(C)
        self.block, self.classifier = TorchInverted(), torch.nn.Linear(C, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block(F.relu6(self.bn(self.stem(x))))
        return self.classifier(x.mean((2, 3)))


class Squeeze(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.fc1, self.fc2 = conv(2 * C, C // 2, 1, rngs), conv(C // 2, 2 * C, 1, rngs)

    def pooled(self, x: jax.Array) -> jax.Array:
        return x.mean((1, 2), keepdims=True)

    def gate(self, x: jax.Array) -> jax.Array:
        return jax.nn.hard_sigmoid(x)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.gate(self.fc2(jax.nn.relu(self.fc1(self.pooled(x)))))


class Inverted(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.expand, self.bn1 = conv(C, 2 * C, 1, rngs, use_bias=False), BatchNorm(2 * C, rngs)
        self.depthwise = conv(2 * C, 2 * C, 3, rngs, feature_group_count=2 * C, use_bias=False)
        self.bn2, self.se = BatchNorm(2 * C, rngs), Squeeze(rngs)
        self.project, self.bn3 = conv(2 * C, C, 1, rngs, use_bias=False), BatchNorm(C, rngs)

    def act(self, x: jax.Array) -> jax.Array:
        return jax.nn.hard_swish(x)

    def summed(self, x: jax.Array, y: jax.Array) -> jax.Array:
        return x + y

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.act(self.bn1(self.expand(x)))
        y = self.se(self.act(self.bn2(self.depthwise(y))))
        return self.summed(x, self.bn3(self.project(y)))


class MobileNet(nnx.Module):
    """Twin of `TorchMobileNet`."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem, self.bn = conv(3, C, 3, rngs, strides=2, use_bias=False), BatchNorm(C, rngs)
        self.block, self.classifier = Inverted(rngs), nnx.Linear(C, 5, rngs=rngs)

    def act(self, x: jax.Array) -> jax.Array:
        return jax.nn.relu6(x)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.classifier(self.block(self.act(self.bn(self.stem(x)))).mean((1, 2)))


IMAGES = {
    "unet": Architecture(TorchUNet, UNet, normal(2, 3, 8, 12), UP),
    "resnet": Architecture(TorchResNet, ResNet, normal(2, 3, 16, 12), IN_SEQUENCE, trains=True),
    # Large enough that ReLU6 and the hard functions reach their bounds.
    "mobilenet": Architecture(TorchMobileNet, MobileNet, normal(2, 3, 8, 12, scale=8.0), trains=True),
}
