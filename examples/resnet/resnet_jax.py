"""The same ResNet in Flax NNX. Shapes: B batch, H W pixels, C channels, K classes."""

import jax
from flax import nnx

SAME = ((1, 1), (1, 1))
"""PyTorch's padding=1. Flax's own "SAME" pads only after the image where the stride is 2."""


class BasicBlock(nnx.Module):
    def __init__(self, inside: int, planes: int, stride: int, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(inside, planes, (3, 3), stride, padding=SAME, use_bias=False, rngs=rngs)
        self.bn1 = nnx.BatchNorm(planes, momentum=0.9, use_fast_variance=False, rngs=rngs)
        self.conv2 = nnx.Conv(planes, planes, (3, 3), padding=SAME, use_bias=False, rngs=rngs)
        self.bn2 = nnx.BatchNorm(planes, momentum=0.9, use_fast_variance=False, rngs=rngs)
        if stride == 1 and inside == planes:
            self.downsample = None
        else:
            self.downsample = nnx.Sequential(
                nnx.Conv(inside, planes, (1, 1), stride, use_bias=False, rngs=rngs),
                nnx.BatchNorm(planes, momentum=0.9, use_fast_variance=False, rngs=rngs),
            )

    def __call__(self, x: jax.Array) -> jax.Array:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = nnx.relu(self.bn1(self.conv1(x)))
        return nnx.relu(self.bn2(self.conv2(x)) + shortcut)


class ResNet(nnx.Module):
    """Images (B, H, W, 3) to logits (B, K)."""

    def __init__(self, widths: tuple[int, ...] = (8, 16), depth: int = 2, num_classes: int = 10, *, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(3, widths[0], (7, 7), 2, padding=((3, 3), (3, 3)), use_bias=False, rngs=rngs)
        self.bn1 = nnx.BatchNorm(widths[0], momentum=0.9, use_fast_variance=False, rngs=rngs)
        inside = widths[0]
        layers = []
        for i, planes in enumerate(widths):
            strides = [2 if i and j == 0 else 1 for j in range(depth)]
            blocks = [
                BasicBlock(inside if j == 0 else planes, planes, stride, rngs) for j, stride in enumerate(strides)
            ]
            layers.append(nnx.Sequential(*blocks))
            inside = planes
        self.layers = nnx.List(layers)
        self.fc = nnx.Linear(inside, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.bn1(self.conv1(x)))
        x = nnx.max_pool(x, (3, 3), (2, 2), padding=SAME)
        for layer in self.layers:
            x = layer(x)
        return self.fc(x.mean(axis=(1, 2)))
