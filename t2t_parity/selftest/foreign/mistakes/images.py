"""Mistakes in the U-Net, the ResNet and the MobileNet: skips, kernels, padding, pooling, batch statistics."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from t2t_parity.selftest.foreign.images import C
from t2t_parity.selftest.mutation import Apply, along_channels, at, calling, changing, exchanged, mistakes_in, setting

stop = jax.lax.stop_gradient
unet, resnet, mobile = mistakes_in("unet"), mistakes_in("resnet"), mistakes_in("mobilenet")


def _flipped(self: Any, original: Any, x: jax.Array) -> jax.Array:
    kernel = self.kernel[...]
    self.kernel[...] = kernel[::-1, ::-1]
    try:
        return original(x)
    finally:
        self.kernel[...] = kernel


def _by_batch(self: Any, original: Any, x: jax.Array, *args: Any) -> jax.Array:
    mean, variance = x.mean((0, 1, 2), keepdims=True), x.var((0, 1, 2), keepdims=True)
    scale, bias = (along_channels(p[...], x) for p in (self.scale, self.bias))
    return (x - mean) / jnp.sqrt(variance + self.epsilon) * scale + bias


def _as_flax(path: str, momentum: float | None = None) -> Apply:
    """Use the layer of flax, whose running variance is biased, optionally with another `momentum`."""

    def apply(model: nnx.Module) -> None:
        module = at(model, path)
        module.__class__ = nnx.BatchNorm
        module.momentum = module.momentum if momentum is None else momentum

    return apply


def _still(self: Any, original: Any, x: jax.Array) -> jax.Array:
    mean, variance = self.mean[...], self.var[...]
    y = original(x)
    self.mean[...], self.var[...] = mean, variance
    return y


# ---- U-Net ----


def _corners(x: jax.Array) -> jax.Array:
    """Bilinear upsampling by 2 with `align_corners=True`."""
    for axis in (1, 2):
        n = x.shape[axis]
        place = jnp.arange(2 * n) * (n - 1) / (2 * n - 1)
        low = jnp.floor(place).astype(int).clip(0, max(n - 2, 0))
        part = (place - low).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        x = x.take(low, axis) * (1 - part) + x.take(jnp.minimum(low + 1, n - 1), axis) * part
    return x


def _per_pixel(self: Any, original: Any, x: jax.Array) -> jax.Array:
    """Compute statistics over the channels of a group for each pixel separately."""
    y = x.reshape(*x.shape[:-1], self.num_groups, -1)
    y = (y - y.mean(-1, keepdims=True)) / jnp.sqrt(y.var(-1, keepdims=True) + self.epsilon)
    scale, bias = (along_channels(p[...], x) for p in (self.scale, self.bias))
    return y.reshape(x.shape) * scale + bias


def _grouped(self: Any, x: jax.Array, groups: int) -> jax.Array:
    """Group normalization with another number of groups."""
    y = x.reshape(x.shape[0], -1, groups, C // groups)
    mean, variance = y.mean((1, 3), keepdims=True), y.var((1, 3), keepdims=True)
    scale, bias = (along_channels(p[...], x) for p in (self.scale, self.bias))
    return ((y - mean) / jnp.sqrt(variance + self.epsilon)).reshape(x.shape) * scale + bias


def _interleaved(self: Any, original: Any, x: jax.Array) -> jax.Array:
    """Form groups of interleaved channels instead of consecutive ones."""
    order = jnp.arange(x.shape[-1]).reshape(-1, self.num_groups).T.ravel()
    scale, bias = (along_channels(p[...], x) for p in (self.scale, self.bias))
    y = (original(x[..., order]) - bias) / scale
    return y[..., jnp.argsort(order)] * scale + bias


def _reflected(self: Any, original: Any, x: jax.Array) -> jax.Array:
    y = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    return nnx.Conv.__call__(self, y)


def _reflecting(model: Any) -> None:
    module = at(model, "enter.conv")
    module.padding = "VALID"
    calling("enter.conv", _reflected)(model)


def _skip_cut(self: Any, original: Any, x: jax.Array) -> jax.Array:
    skip = self.enter(x)
    low = self.down(skip)
    deep = self.smooth(self.middle(self.pool(low)))
    wide = self.blocky(low + deep)
    raw = jax.nn.relu(skip)
    return self.image(self.out(self.leave(self.joined(raw, self.up(deep), wide))))


UNET = (
    unet(
        "skip behind",
        "the model",
        "concat order",
        calling("", lambda self, original, skip, up, wide: jnp.concatenate((up, skip, wide), -1), "joined"),
    ),
    unet(
        "parts in reverse",
        "the model",
        "concat order",
        calling("", lambda self, original, skip, up, wide: jnp.concatenate((wide, up, skip), -1), "joined"),
    ),
    unet(
        "skip through a ReLU",
        "the model",
        None,
        calling("", _skip_cut),
        also=("wrong tensor", "extra step", "activation"),
    ),
    unet("transposed kernel not turned", "up", "kernel flipped", calling("up", _flipped)),
    unet(
        "transposed kernel: height and width",
        "up",
        "kernel transposed",
        changing("up.kernel", lambda x: x.swapaxes(0, 1)),
        "conversion",
        also=("axis order",),
    ),
    unet(
        "transposed kernel: in and out",
        "up",
        "kernel transposed",
        changing("up.kernel", lambda x: x.swapaxes(2, 3)),
        "conversion",
        also=("axis order",),
    ),
    unet(
        "two groups for four",
        "enter.norm",
        "groups",
        calling("enter.norm", lambda self, original, x: _grouped(self, x, 2)),
        also=("norm groups", "norm statistics"),
    ),
    unet(
        "groups interleaved",
        "enter.norm",
        None,
        calling("enter.norm", _interleaved),
        also=("groups", "norm groups", "norm statistics"),
    ),
    unet("statistics of every pixel", "leave.norm", None, calling("leave.norm", _per_pixel), also=("norm statistics",)),
    unet("GroupNorm eps 1e-6", "middle.norm", "epsilon", setting("middle.norm", epsilon=1e-6)),
    unet("corners aligned", "the model", "resize", calling("", lambda self, original, x: _corners(x), "smooth")),
    unet(
        "nearest for bilinear", "the model", "resize", calling("", lambda self, original, x: self.blocky(x), "smooth")
    ),
    unet(
        "bilinear for nearest", "the model", "resize", calling("", lambda self, original, x: self.smooth(x), "blocky")
    ),
    unet("padding SAME", "down", "padding", setting("down", padding="SAME")),
    unet("padding reflected", "enter.conv", "padding", _reflecting),
    unet(
        "mean pooling",
        "the model",
        "pooling",
        calling("", lambda self, original, x: nnx.avg_pool(x, (2, 2), strides=(2, 2)), "pool"),
    ),
    unet("ReLU for SiLU", "leave", "activation", calling("leave", lambda self, original, x: jax.nn.relu(x), "act")),
    unet(
        "image transposed",
        "the model",
        None,
        calling("", lambda self, original, x: original(x).swapaxes(2, 3), "image"),
        also=("axis order", "layout", "structure"),
    ),
    unet(
        "image flipped",
        "the model",
        "axis flipped",
        calling("", lambda self, original, x: original(x)[..., ::-1], "image"),
    ),
    unet(
        "deep path does not train",
        "the model",
        "gradient cut",
        calling("", lambda self, original, x: stop(original(x)), "smooth"),
        "gradient",
    ),
)

# ---- ResNet ----

BLOCK = "layer1.layers.0"
NAMED = "layer1.0"


def _relu_first(self: Any, original: Any, y: jax.Array, shortcut: jax.Array) -> jax.Array:
    return jax.nn.relu(y) + shortcut


RESNET = (
    resnet("BatchNorm eps 1e-3", "bn1", "epsilon", setting("bn1", epsilon=1e-3)),
    resnet("BatchNorm by the batch", f"{NAMED}.bn2", "batch statistics", calling(f"{BLOCK}.bn2", _by_batch)),
    resnet("padding SAME", f"{NAMED}.conv2", "padding", setting(f"{BLOCK}.conv2", padding="SAME")),
    resnet("pooling padded SAME", "maxpool", "padding", setting("maxpool", padding="SAME")),
    resnet(
        "mean pooling",
        "maxpool",
        "pooling",
        calling("maxpool", lambda self, original, x: nnx.avg_pool(x, (3, 3), (2, 2), padding=self.padding)),
    ),
    resnet(
        "ReLU in front of the sum",
        NAMED,
        None,
        calling(BLOCK, _relu_first, "summed"),
        also=("step left out", "activation", "extra step"),
    ),
    resnet(
        "sum without ReLU",
        NAMED,
        "step left out",
        calling(BLOCK, lambda self, original, y, s: y + s, "summed"),
        also=("activation",),
    ),
    resnet(
        "shortcut missing", NAMED, "residual", calling(BLOCK, lambda self, original, y, s: jax.nn.relu(y), "summed")
    ),
    resnet(
        "largest for the mean", "the model", "pooling", calling("", lambda self, original, x: x.max((1, 2)), "pooled")
    ),
    resnet(
        "blue, green, red", "the model", "axis flipped", calling("", lambda self, original, x: original(x[..., ::-1]))
    ),
    resnet(
        "kernel not transposed",
        f"{NAMED}.conv2",
        "kernel transposed",
        changing(f"{BLOCK}.conv2.kernel", lambda x: x.transpose(1, 0, 2, 3)),
        "conversion",
    ),
    resnet(
        "kernel in and out exchanged",
        f"{NAMED}.downsample.0",
        "kernel transposed",
        changing(f"{BLOCK}.downsample.layers.0.kernel", lambda x: x.swapaxes(2, 3)),
        "conversion",
    ),
    resnet("scale and bias exchanged", "bn1", None, exchanged("bn1.scale", "bn1.bias"), "conversion"),
    resnet(
        "statistics of two norms exchanged",
        "bn1",
        None,
        exchanged("bn1.mean", f"{BLOCK}.bn3.mean"),
        "conversion",
        also=("bias", "shifted by one"),
    ),
    resnet("momentum of 0.99", "bn1", "batch norm momentum", setting("bn1", momentum=0.99), "train"),
    resnet(
        "momentum as weight of the new",
        f"{NAMED}.bn1",
        "batch norm momentum",
        setting(f"{BLOCK}.bn1", momentum=0.1),
        "train",
    ),
    resnet("running variance biased", f"{NAMED}.bn2", "running variance", _as_flax(f"{BLOCK}.bn2"), "train"),
    resnet(
        "flax's momentum and variance",
        "bn1",
        "batch norm momentum and running variance",
        _as_flax("bn1", 0.99),
        "train",
    ),
    resnet(
        "running statistics not updated", f"{NAMED}.bn3", "running statistics", calling(f"{BLOCK}.bn3", _still), "train"
    ),
    resnet(
        "shortcut does not train",
        NAMED,
        "gradient cut",
        calling(BLOCK, lambda self, original, y, s: original(y, stop(s)), "summed"),
        "gradient",
    ),
)

# ---- MobileNet ----


def _activated(self: Any, original: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return x + self.act(y)


def _squeezed_first(self: Any, original: Any, x: jax.Array) -> jax.Array:
    y = self.act(self.bn1(self.expand(x)))
    y = self.act(self.se(self.bn2(self.depthwise(y))))
    return self.summed(x, self.bn3(self.project(y)))


def _keras_hard_sigmoid(self: Any, original: Any, x: jax.Array) -> jax.Array:
    return jnp.clip(0.2 * x + 0.5, 0, 1)


def _straight(self: Any, original: Any, x: jax.Array) -> jax.Array:
    """Return the value of hard swish with the derivative of swish."""
    y = jax.nn.silu(x)
    return y + stop(original(x) - y)


MOBILENET = (
    mobile("ReLU for ReLU6", "the model", "activation", calling("", lambda self, original, x: jax.nn.relu(x), "act")),
    mobile(
        "swish for hard swish", "block", "activation", calling("block", lambda self, original, x: jax.nn.silu(x), "act")
    ),
    mobile(
        "ReLU6 for hard swish",
        "block",
        "activation",
        calling("block", lambda self, original, x: jax.nn.relu6(x), "act"),
    ),
    mobile(
        "sigmoid gate",
        "block.se",
        None,
        calling("block.se", lambda self, original, x: jax.nn.sigmoid(x), "gate"),
        also=("activation",),
    ),
    mobile(
        "hard sigmoid of Keras",
        "block.se",
        None,
        calling("block.se", _keras_hard_sigmoid, "gate"),
        also=("activation",),
    ),
    mobile(
        "squeeze by the largest",
        "block.se",
        "pooling",
        calling("block.se", lambda self, original, x: x.max((1, 2), keepdims=True), "pooled"),
    ),
    mobile(
        "gate on the gate",
        "block.se",
        None,
        calling("block.se", lambda self, original, x: original(x) ** 2, "gate"),
        also=("step doubled", "wrong tensor", "extra step"),
    ),
    mobile(
        "squeeze in front of the activation",
        "block",
        None,
        calling("block", _squeezed_first),
        also=("wrong tensor", "step left out"),
    ),
    mobile(
        "linear bottleneck activated",
        "block",
        None,
        calling("block", _activated, "summed"),
        also=("activation", "extra step"),
    ),
    mobile("residual missing", "block", "residual", calling("block", lambda self, original, x, y: y, "summed")),
    mobile("padding SAME", "stem", "padding", setting("stem", padding="SAME")),
    mobile("BatchNorm eps 1e-3", "block.bn1", "epsilon", setting("block.bn1", epsilon=1e-3)),
    mobile(
        "channels of the depthwise kernel reversed",
        "block.depthwise",
        "axis flipped",
        changing("block.depthwise.kernel", lambda x: x[..., ::-1]),
        "conversion",
        also=("groups", "axis permuted"),
    ),
    mobile(
        "depthwise kernel turned",
        "block.depthwise",
        "kernel flipped",
        changing("block.depthwise.kernel", lambda x: x[::-1, ::-1]),
        "conversion",
    ),
    mobile("momentum of 0.99", "bn", "batch norm momentum", setting("bn", momentum=0.99), "train"),
    mobile("derivative of swish", "block", None, calling("block", _straight, "act"), "gradient"),
    mobile(
        "gate does not train",
        "block.se",
        "gradient cut",
        calling("block.se", lambda self, original, x: stop(original(x)), "gate"),
        "gradient",
    ),
)


IMAGE_MISTAKES = (*UNET, *RESNET, *MOBILENET)
