"""More convolutions: dilated causal convolutions (WaveNet), 3D convolutions, and a ConvNeXt block.

Channels are the second axis in PyTorch, the last in flax; the WaveNet maps (B, C, T) to (B, C, T) on both sides.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
import torch.nn.functional as F
from flax import nnx

from t2t_parity.selftest.foreign.architecture import Architecture, channels_first, channels_last, normal
from t2t_parity.selftest.foreign.images import BatchNorm

C = 8


# ---- WaveNet ----


class TorchWaveBlock(torch.nn.Module):
    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.conv = torch.nn.Conv1d(C, 2 * C, 2, dilation=dilation)
        self.res, self.skip = torch.nn.Conv1d(C, C, 1), torch.nn.Conv1d(C, C, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = self.conv(F.pad(x, (self.dilation, 0))).chunk(2, 1)
        y = torch.tanh(a) * torch.sigmoid(b)
        return x + self.res(y), self.skip(y)


class TorchWaveNet(torch.nn.Module):
    """Gated causal convolutions with dilations 1 and 2, and a sum of skips; (B, 3, T) -> (B, 4, T)."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = torch.nn.Conv1d(3, C, 1)
        self.layers = torch.nn.ModuleList([TorchWaveBlock(1), TorchWaveBlock(2)])
        self.out = torch.nn.Conv1d(C, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, total = self.enter(x), torch.zeros(())
        for layer in self.layers:
            x, skip = layer(x)
            total = total + skip
        return self.out(F.relu(total))


class WaveBlock(nnx.Module):
    """WaveNet block; (B, T, C) -> (B, T, C)."""

    def __init__(self, dilation: int, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(C, 2 * C, (2,), kernel_dilation=dilation, padding="VALID", rngs=rngs)
        self.res, self.skip = nnx.Conv(C, C, (1,), rngs=rngs), nnx.Conv(C, C, (1,), rngs=rngs)
        self.dilation = dilation

    def padded(self, x: jax.Array) -> jax.Array:
        return jnp.pad(x, ((0, 0), (self.dilation, 0), (0, 0)))

    def gated(self, x: jax.Array) -> jax.Array:
        a, b = jnp.split(x, 2, axis=-1)
        return jnp.tanh(a) * jax.nn.sigmoid(b)

    def summed(self, x: jax.Array, y: jax.Array) -> jax.Array:
        return x + y

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = self.gated(self.conv(self.padded(x)))
        return self.summed(x, self.res(y)), self.skip(y)


class WaveNet(nnx.Module):
    """Twin of `TorchWaveNet`."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.enter, self.out = nnx.Conv(3, C, (1,), rngs=rngs), nnx.Conv(C, 4, (1,), rngs=rngs)
        self.layers = nnx.List([WaveBlock(1, rngs), WaveBlock(2, rngs)])

    def total(self, skips: list[jax.Array]) -> jax.Array:
        return skips[0] + skips[1]

    def signal(self, x: jax.Array) -> jax.Array:
        return channels_first(x)

    def __call__(self, x: jax.Array) -> jax.Array:
        x, skips = self.enter(channels_last(x)), []
        for layer in self.layers:
            x, skip = layer(x)
            skips.append(skip)
        return self.signal(self.out(jax.nn.relu(self.total(skips))))


# ---- volumes ----


class TorchVolumes(torch.nn.Module):
    """3D convolutions; (B, 2, 4, 8, 6) -> (B, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn = torch.nn.Conv3d(2, C, 3, padding=1), torch.nn.BatchNorm3d(C)
        self.conv2, self.head = torch.nn.Conv3d(C, C, 3, stride=2, padding=1), torch.nn.Linear(C, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool3d(F.elu(self.bn(self.conv1(x))), (1, 2, 2))
        return self.head(F.elu(self.conv2(x)).mean((2, 3, 4)))


class Volumes(nnx.Module):
    """Twin of `TorchVolumes`."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv1, self.bn = nnx.Conv(2, C, (3, 3, 3), padding=1, rngs=rngs), BatchNorm(C, rngs)
        self.conv2 = nnx.Conv(C, C, (3, 3, 3), strides=2, padding=1, rngs=rngs)
        self.head = nnx.Linear(C, 5, rngs=rngs)

    def entered(self, x: jax.Array) -> jax.Array:
        return x

    def pool(self, x: jax.Array) -> jax.Array:
        return nnx.max_pool(x, (1, 2, 2), strides=(1, 2, 2))

    def act(self, x: jax.Array) -> jax.Array:
        return jax.nn.elu(x)

    def pooled(self, x: jax.Array) -> jax.Array:
        return x.mean((1, 2, 3))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.pool(self.act(self.bn(self.conv1(self.entered(x)))))
        return self.head(self.pooled(self.act(self.conv2(x))))


# ---- ConvNeXt ----


class TorchConvNeXtBlock(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dwconv, self.norm = torch.nn.Conv2d(C, C, 7, padding=3, groups=C), torch.nn.LayerNorm(C, eps=1e-6)
        self.pwconv1, self.pwconv2 = torch.nn.Linear(C, 2 * C), torch.nn.Linear(2 * C, C)
        self.gamma = torch.nn.Parameter(torch.ones(C))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


class TorchConvNeXt(torch.nn.Module):
    """Patch-embedding stem and one block with LayerScale; (B, 3, 16, 12) -> (B, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = torch.nn.Conv2d(3, C, 2, stride=2), TorchConvNeXtBlock()
        self.norm, self.head = torch.nn.LayerNorm(C, eps=1e-6), torch.nn.Linear(C, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.block(self.stem(x)).mean((2, 3))))


class ConvNeXtBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.dwconv = nnx.Conv(C, C, (7, 7), padding=3, feature_group_count=C, rngs=rngs)
        self.norm = nnx.LayerNorm(C, epsilon=1e-6, use_fast_variance=False, rngs=rngs)
        self.pwconv1, self.pwconv2 = nnx.Linear(C, 2 * C, rngs=rngs), nnx.Linear(2 * C, C, rngs=rngs)
        self.gamma = nnx.Param(jnp.ones(C))

    def act(self, x: jax.Array) -> jax.Array:
        return jax.nn.gelu(x, approximate=False)

    def summed(self, x: jax.Array, y: jax.Array) -> jax.Array:
        return x + self.gamma[...][None, None, None] * y

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.summed(x, self.pwconv2(self.act(self.pwconv1(self.norm(self.dwconv(x))))))


class ConvNeXt(nnx.Module):
    """Twin of `TorchConvNeXt`."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(3, C, (2, 2), strides=2, padding="VALID", rngs=rngs)
        self.block, self.head = ConvNeXtBlock(rngs), nnx.Linear(C, 5, rngs=rngs)
        self.norm = nnx.LayerNorm(C, epsilon=1e-6, use_fast_variance=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.norm(self.block(self.stem(x)).mean((1, 2))))


CONVOLUTIONS = {
    "wavenet": Architecture(TorchWaveNet, WaveNet, normal(2, 3, 7)),
    "volumes": Architecture(TorchVolumes, Volumes, normal(2, 2, 4, 8, 6)),
    "convnext": Architecture(TorchConvNeXt, ConvNeXt, normal(2, 3, 16, 12)),
}
