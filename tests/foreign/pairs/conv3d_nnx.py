"""A video network of factorized 3-D convolutions: PyTorch in nested modules; NNX in flat lists under other names.

Shapes: B videos, C channels, t frames, h w pixels, K classes.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import torch
from flax import nnx

from tests.foreign.pairs.common import Bug, ForeignPair, Side, array, conv, dense, norm, normal, randomize

WIDTHS, K, EPS = (5, 8), 4, 1e-4


class Conv2Plus1D(torch.nn.Sequential):
    """A convolution of each frame, then one over time."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__(
            torch.nn.Conv3d(inside, outside, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False),
            torch.nn.BatchNorm3d(outside, eps=EPS),
            torch.nn.ReLU(),
            torch.nn.Conv3d(outside, outside, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False),
        )


class VideoBlock(torch.nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv, self.norm = Conv2Plus1D(inside, outside, stride), torch.nn.BatchNorm3d(outside, eps=EPS)
        self.act = torch.nn.PReLU(outside)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.norm(self.conv(x)))


class TorchVideoNet(torch.nn.Module):
    """(B, 2, t, h, w) -> (B, K)."""

    def __init__(self) -> None:
        super().__init__()
        a, b = WIDTHS
        self.stem = VideoBlock(2, a, 1)
        self.pool = torch.nn.AvgPool3d((1, 3, 3), (1, 2, 2), padding=(0, 1, 1))
        self.stages = torch.nn.ModuleList([VideoBlock(a, b, 2), VideoBlock(b, b, 1)])
        self.head = torch.nn.Linear(b, K)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.stem(x))
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((2, 3, 4)))


class VideoNet(nnx.Module):
    def __init__(self, bug: str = "", *, rngs: nnx.Rngs) -> None:
        a, b = WIDTHS
        plan = ((2, a, 1), (a, b, 2), (b, b, 1))
        options: dict[str, Any] = {"use_bias": False, "rngs": rngs}
        self.bug = bug
        self.spatial = nnx.List(
            [nnx.Conv(i, o, (1, 3, 3), (1, s, s), padding=((0, 0), (1, 1), (1, 1)), **options) for i, o, s in plan]
        )
        self.temporal = nnx.List(
            [nnx.Conv(o, o, (3, 1, 1), (s, 1, 1), padding=((1, 1), (0, 0), (0, 0)), **options) for _, o, s in plan]
        )
        self.norms = nnx.List([self.norm(o, rngs) for _, o, _ in plan for _ in range(2)])
        self.slopes = nnx.List([nnx.Param(jnp.zeros(o)) for _, o, _ in plan])
        self.classify = nnx.Linear(b, K, rngs=rngs)

    @staticmethod
    def norm(width: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
        return nnx.BatchNorm(width, use_running_average=True, epsilon=EPS, use_fast_variance=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for i, (spatial, temporal, slope) in enumerate(zip(self.spatial, self.temporal, self.slopes, strict=True)):
            if i == 1:
                padded = self.bug != "padding_not_counted"
                x = nnx.avg_pool(x, (1, 3, 3), (1, 2, 2), ((0, 0), (1, 1), (1, 1)), padded)  # bug: padding_not_counted
            x = self.norms[2 * i](spatial(x))
            gelu = self.bug == "gelu" and i == 2
            x = temporal(nnx.gelu(x) if gelu else nnx.relu(x))  # bug: gelu
            x = self.norms[2 * i + 1](x)
            negative = slope[0] if self.bug == "one_slope" and i == 2 else slope[...]
            x = jnp.where(x >= 0, x, negative * x)  # bug: one_slope
        return self.classify(x.mean((1, 2, 3)))


def converted(model: Any, bug: str) -> VideoNet:
    port = VideoNet(bug, rngs=nnx.Rngs(0))
    for i, block in enumerate((model.stem, *model.stages)):
        nnx.update(port.spatial[i], conv(block.conv[0]))
        nnx.update(port.temporal[i], conv(block.conv[3]))
        for layer, other in ((port.norms[2 * i], block.conv[1]), (port.norms[2 * i + 1], block.norm)):
            statistics = {"mean": jnp.asarray(array(other.running_mean)), "var": jnp.asarray(array(other.running_var))}
            nnx.update(layer, norm(other) | statistics)
        port.slopes[i][...] = jnp.asarray(array(block.act.weight))
    nnx.update(port.classify, dense(model.head))
    return port


PAIR = ForeignPair(
    name="conv3d_nnx",
    file=__file__,
    torch_model=lambda seed: randomize(TorchVideoNet(), seed),
    jax_side=lambda model, bug: Side("nnx", converted(model, bug), takes=((0, 2, 3, 4, 1),)),
    inputs=lambda seed: (normal(seed, 2, 2, 4, 8, 12),),
    bugs={
        "padding_not_counted": Bug(("pool",)),
        "gelu": Bug(("stages.1.conv.2",)),
        "one_slope": Bug(("stages.1.act",)),
    },
)
