"""Mistakes in the WaveNet, 3D convolutions and the ConvNeXt: dilation, causality, axes, scales."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from t2t_parity.selftest.mutation import along_channels, calling, changing, mistakes_in, setting

stop = jax.lax.stop_gradient
wave, volumes, convnext = mistakes_in("wavenet"), mistakes_in("volumes"), mistakes_in("convnext")

# ---- WaveNet ----

LAYER = "layers.1"


def _undilated(self: Any, original: Any, x: jax.Array) -> jax.Array:
    """Use dilation 1 on an input padded for dilation 2."""
    return nnx.Conv.__call__(self, x[:, 1:])


def _padding_after(self: Any, original: Any, x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, self.dilation), (0, 0)))


def _padding_around(self: Any, original: Any, x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, 0), (self.dilation // 2, self.dilation - self.dilation // 2), (0, 0)))


def _one_late(self: Any, original: Any, x: jax.Array) -> jax.Array:
    """Shift the input by one more step, so that the current step is excluded."""
    return jnp.pad(x[:, :-1], ((0, 0), (self.dilation + 1, 0), (0, 0)))


def _parts_exchanged(self: Any, original: Any, x: jax.Array) -> jax.Array:
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.tanh(b) * jax.nn.sigmoid(a)


def _interleaved(self: Any, original: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x[..., ::2]) * jax.nn.sigmoid(x[..., 1::2])


def _undilate(model: Any) -> None:
    module = model.layers[1].conv
    module.kernel_dilation = 1
    calling("layers.1.conv", _undilated)(model)


WAVENET = (
    wave(
        "dilation of 1",
        f"{LAYER}.conv",
        None,
        _undilate,
        also=(
            "dilation",
            "shifted by one",
            "padding",
        ),
    ),
    wave("padding behind", LAYER, "padding", calling(LAYER, _padding_after, "padded"), also=("axis permuted",)),
    wave(
        "padding on both sides", LAYER, "padding", calling(LAYER, _padding_around, "padded"), also=("shifted by one",)
    ),
    wave(
        "one step late",
        LAYER,
        None,
        calling(LAYER, _one_late, "padded"),
        also=("shifted by one", "padding", "wrong tensor"),
    ),
    wave(
        "kernel turned",
        "layers.0.conv",
        "kernel flipped",
        changing("layers.0.conv.kernel", lambda x: x[::-1]),
        "conversion",
    ),
    wave(
        "filter and gate exchanged",
        LAYER,
        "parts order",
        calling(LAYER, _parts_exchanged, "gated"),
        also=("wrong tensor", "gate and up", "concat order"),
    ),
    wave("filter and gate interleaved", LAYER, None, calling(LAYER, _interleaved, "gated"), also=("parts order",)),
    wave(
        "ReLU for tanh",
        LAYER,
        "activation",
        calling(LAYER, lambda self, original, x: jax.nn.relu(x[..., :8]) * jax.nn.sigmoid(x[..., 8:]), "gated"),
    ),
    wave("residual missing", "layers.0", "residual", calling("layers.0", lambda self, original, x, y: y, "summed")),
    wave(
        "sum times the root of one half",
        "layers.0",
        "scale",
        calling("layers.0", lambda self, original, x, y: original(x, y) * 0.5**0.5, "summed"),
    ),
    wave("last skip alone", "the model", "residual", calling("", lambda self, original, skips: skips[1], "total")),
    wave(
        "mean of the skips",
        "the model",
        None,
        calling("", lambda self, original, skips: original(skips) / 2, "total"),
        also=(
            "scale",
            "pooling",
            "residual",
        ),
    ),
    wave(
        "samples backwards",
        "the model",
        "axis flipped",
        calling("", lambda self, original, x: original(x)[..., ::-1], "signal"),
    ),
    wave(
        "signal one sample late",
        "the model",
        "shifted by one",
        calling("", lambda self, original, x: jnp.roll(original(x), 1, -1), "signal"),
    ),
    wave(
        "first skip does not train",
        "the model",
        "gradient cut",
        calling("", lambda self, original, skips: stop(skips[0]) + skips[1], "total"),
        "gradient",
    ),
)

# ---- volumes ----


def _turned(self: Any, original: Any, x: jax.Array) -> jax.Array:
    return x.swapaxes(2, 3).reshape(x.shape)


VOLUMES = (
    volumes(
        "depth backwards", "the model", "axis flipped", calling("", lambda self, original, x: x[:, ::-1], "entered")
    ),
    volumes(
        "height and width read in the other order",
        "the model",
        None,
        calling("", _turned, "entered"),
        also=("axis order",),
    ),
    volumes(
        "mean pooling",
        "the model",
        "pooling",
        calling("", lambda self, original, x: nnx.avg_pool(x, (1, 2, 2), strides=(1, 2, 2)), "pool"),
    ),
    volumes(
        "sum for mean",
        "the model",
        "pooling",
        calling("", lambda self, original, x: x.sum((1, 2, 3)), "pooled"),
        also=("scale",),
    ),
    volumes("SELU for ELU", "the model", "activation", calling("", lambda self, original, x: jax.nn.selu(x), "act")),
    volumes("padding SAME", "conv2", "padding", setting("conv2", padding="SAME")),
    volumes("BatchNorm eps 1e-3", "bn", "epsilon", setting("bn", epsilon=1e-3)),
    volumes(
        "kernel depth last",
        "conv1",
        None,
        changing("conv1.kernel", lambda x: x.transpose(1, 2, 0, 3, 4)),
        "conversion",
        also=(
            "kernel transposed",
            "axis order",
        ),
    ),
    volumes(
        "kernel in and out exchanged",
        "conv2",
        "kernel transposed",
        changing("conv2.kernel", lambda x: x.swapaxes(3, 4)),
        "conversion",
    ),
)

# ---- ConvNeXt ----


def _unscaled(self: Any, original: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return x + y


def _scaled_sum(self: Any, original: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return (x + y) * along_channels(self.gamma[...], x)


def _norm_outside(self: Any, original: Any, x: jax.Array) -> jax.Array:
    """Apply the norm before the depthwise convolution."""
    y = self.dwconv(self.norm(x))
    return self.summed(x, self.pwconv2(self.act(self.pwconv1(y))))


def _over_pixels(self: Any, original: Any, x: jax.Array) -> jax.Array:
    """Compute statistics of each channel over the pixels (instance norm)."""
    if x.ndim < 4:
        return original(x)
    scale, bias = (along_channels(p[...], x) for p in (self.scale, self.bias))
    y = (x - x.mean((1, 2), keepdims=True)) / jnp.sqrt(x.var((1, 2), keepdims=True) + self.epsilon)
    return y * scale + bias


CONVNEXT = (
    convnext(
        "branch not scaled",
        "block",
        None,
        calling("block", _unscaled, "summed"),
        also=("step left out", "scale", "residual", "wrong tensor"),
    ),
    convnext("sum scaled", "block", None, calling("block", _scaled_sum, "summed")),
    convnext("norm in front of the convolution", "block", "wrong tensor", calling("block", _norm_outside)),
    convnext(
        "statistics of the pixels", "block.norm", None, calling("block.norm", _over_pixels), also=("norm statistics",)
    ),
    convnext("LayerNorm eps 1e-5", "block.norm", "epsilon", setting("block.norm", epsilon=1e-5)),
    convnext(
        "GELU by tanh",
        "block",
        "gelu form",
        calling("block", lambda self, original, x: jax.nn.gelu(x, approximate=True), "act"),
    ),
    convnext(
        "residual missing",
        "block",
        "residual",
        calling("block", lambda self, original, x, y: original(jnp.zeros_like(x), y), "summed"),
    ),
    convnext(
        "depthwise kernel transposed",
        "block.dwconv",
        "kernel transposed",
        changing("block.dwconv.kernel", lambda x: x.swapaxes(0, 1)),
        "conversion",
    ),
    convnext(
        "stem kernel transposed",
        "stem",
        "kernel transposed",
        changing("stem.kernel", lambda x: x.swapaxes(0, 1)),
        "conversion",
    ),
    convnext(
        "scale does not train",
        "block",
        "gradient cut",
        calling("block", lambda self, original, x, y: x + along_channels(stop(self.gamma[...]), x) * y, "summed"),
        "gradient",
    ),
)

CONVOLUTION_MISTAKES = (*WAVENET, *VOLUMES, *CONVNEXT)
