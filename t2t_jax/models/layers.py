"""Layers as PyTorch means them: flax's own, with the defaults that would break equality set right.

Shapes: B batch, N tokens, C channels, H W image, L windows, K kernel size, S stride, P padding.
`spec` is what every layer takes besides its sizes: dtype (of the computation; None: that of parameters and input),
param_dtype, rngs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from t2t_jax.ops.platform import on_cpu

TILE_ROWS = 16
"""Rows of a tile in a TPU's memory, of bfloat16; of float32 it has half as many."""


class Buffer(nnx.Variable):
    """A tensor that is saved and converted but never trained nor decayed (`pos_embed`, the performer's `w`)."""


def trunc_normal(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """timm's trunc_normal_(std=0.02): N(0, 0.02) with absolute bounds +-2, which lie at 100 standard deviations."""
    return jnp.clip(0.02 * jax.random.normal(key, shape, dtype), -2.0, 2.0)


class Linear(nnx.Linear):
    """x @ kernel + bias, N(0, 0.02) kernel, zero bias.

    All tokens lie in one dimension: the kernel's gradient is then one plain product, which XLA would otherwise make of
    transposed copies (on a CPU a sixth of the attention's time). But not where the memory of a TPU is tiled in such a
    way that the tokens would be copied for it, as 197 are (docs/performance.md has what that costs).
    """

    def __init__(self, in_features: int, out_features: int, *, use_bias: bool = True, **spec: Any) -> None:
        super().__init__(in_features, out_features, use_bias=use_bias, kernel_init=trunc_normal, **spec)

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        if not on_cpu() and math.prod(inputs.shape[1:-1]) % TILE_ROWS:
            return super().__call__(inputs, out_sharding)
        x = super().__call__(inputs.reshape(-1, inputs.shape[-1]), out_sharding)
        return x.reshape(*inputs.shape[:-1], x.shape[-1])


class LayerNorm(nnx.LayerNorm):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over channels, at least in float32.

    flax's defaults differ from PyTorch's: epsilon 1e-6, and `use_fast_variance`, which loses all digits to
    cancellation when the mean is large. Its order of products differs too: it scales 1 / sqrt first, which makes an
    array of all tokens in place of one number for each.
    """

    def __init__(self, num_features: int, *, epsilon: float = 1e-5, **spec: Any) -> None:
        super().__init__(num_features, epsilon=epsilon, use_fast_variance=False, **spec)

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        if mask is not None or self.scale is None or self.bias is None:
            return super().__call__(x, mask=mask)
        x, scale, bias = self.promote_dtype((x, self.scale[...], self.bias[...]), dtype=self.dtype)
        scale, bias = (jnp.expand_dims(p, range(x.ndim - 1)) for p in (scale, bias))
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        centred = wide - wide.mean(axis=-1, keepdims=True)
        variance = (centred * centred).mean(axis=-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.epsilon) * scale + bias
        return y.astype(x.dtype)


class Conv(nnx.Conv):
    """Convolution over NHWC images with PyTorch's initialisation: U(+-1/sqrt(fan in)) for kernel and bias."""

    def __init__(
        self, in_features: int, out_features: int, kernel: int, stride: int = 1, padding: int = 0, **spec: Any
    ) -> None:
        bound = 1 / math.sqrt(in_features * kernel * kernel)
        super().__init__(
            in_features,
            out_features,
            (kernel, kernel),
            strides=stride,
            padding=padding,
            kernel_init=symmetric_uniform(bound),
            bias_init=symmetric_uniform(bound),
            **spec,
        )


def symmetric_uniform(bound: float) -> Callable[..., jax.Array]:
    """Initialiser U(-bound, bound)."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Dropout(nnx.Dropout):
    """Dropout; in training `rngs` comes with the call."""


class DropPath(Dropout):
    """Stochastic depth (arXiv 1603.09382): drops a whole residual branch per sample, rescales the others."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__(rate, broadcast_dims=(1, 2))


@jax.custom_jvp
def gelu(x: jax.Array) -> jax.Array:
    """x Phi(x), Phi the normal distribution (arXiv 1606.08415), at least in float32.

    As PyTorch computes it, by erf. `jax.nn.gelu` takes erfc: another exponential and two divisions for each number, a
    quarter of the MLP's time on CPU. One array is kept for the backward pass, where autodiff would keep two.
    """
    return _gelu_and_slope(x)[0]


@gelu.defjvp
def _gelu_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    y, slope = _gelu_and_slope(*primals)
    return y, tangents[0] * slope


def _gelu_and_slope(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x Phi(x) and its derivative Phi(x) + x phi(x)."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    normal = 0.5 * (1.0 + jax.lax.erf(wide * math.sqrt(0.5)))
    density = jnp.exp(-0.5 * wide * wide) * (1 / math.sqrt(2 * math.pi))
    return (wide * normal).astype(x.dtype), (normal + wide * density).astype(x.dtype)


class GELU(nnx.Module):
    """The exact erf GELU (flax's default is the tanh approximation)."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return gelu(x)


class Activation(nnx.Module):
    """A named element-wise function, as a module: relu, sigmoid, tanh."""

    def __init__(self, function: Callable[[jax.Array], jax.Array]) -> None:
        self.function = function

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.function(x)


class Identity(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return x


class Sequential(nnx.List):
    """Layers one after another, at the paths `0`, `1`, ... of PyTorch's Sequential (nnx's own adds `layers`)."""

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        for layer in self:
            x = layer(x, rngs=rngs) if isinstance(layer, nnx.Dropout) else layer(x)
        return x


class Unfold(nnx.Module):
    """Soft split, PyTorch's `nn.Unfold` in tokens-last order: (B, H, W, C) -> (B, L, C * K * K), channel-major.

    On a CPU a rearrangement: with the image cut into steps of the stride, S x S pixels each, a window is a few whole
    slices of it. Elsewhere by a convolution, which gives the same order; with slices a TPU reads and writes far more
    (docs/performance.md). Its default precision would round the pixels.
    """

    def __init__(self, kernel: int, stride: int, padding: int) -> None:
        self.kernel, self.stride, self.padding = kernel, stride, padding

    def __call__(self, x: jax.Array) -> jax.Array:
        return self._slices(x) if on_cpu() else self._patches(x)

    def _patches(self, x: jax.Array) -> jax.Array:
        kernel, strides, padding = ((n, n) for n in (self.kernel, self.stride, self.padding))
        x = jax.lax.conv_general_dilated_patches(
            x,
            kernel,
            strides,
            (padding, padding),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
        return x.reshape(x.shape[0], -1, x.shape[-1])

    def _slices(self, x: jax.Array) -> jax.Array:
        K, S, P = self.kernel, self.stride, self.padding
        B, *sides, C = x.shape
        rows, columns = ((side + 2 * P - K) // S + 1 for side in sides)
        steps = range(math.ceil(K / S))  # those that a window lies over
        crops = [(P, (n + len(steps) - 1) * S - side - P, 0) for n, side in zip((rows, columns), sides, strict=True)]
        x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *crops, (0, 0, 0)])
        x = x.reshape(B, rows + len(steps) - 1, S, columns + len(steps) - 1, S, C).transpose(0, 1, 3, 5, 2, 4)
        bands = [x[:, i : i + rows, ..., : K - i * S, :] for i in steps]
        parts = [[band[:, :, j : j + columns, ..., : K - j * S] for j in steps] for band in bands]
        windows = jnp.concatenate([jnp.concatenate(part, axis=-1) for part in parts], axis=-2)
        return windows.reshape(B, rows * columns, C * K * K)


def check_images(x: jax.Array, in_chans: int, img_size: tuple[int, int]) -> None:
    """Raises ValueError unless `x` is floating and (B, *img_size, in_chans)."""
    if x.ndim != 4 or tuple(x.shape[1:]) != (*img_size, in_chans):
        raise ValueError(
            f"expected images (B, {img_size[0]}, {img_size[1]}, {in_chans}), got {tuple(x.shape)}: resize the images, "
            "or create the model with their img_size and in_chans"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"expected floating-point images, got {x.dtype}: scale them by 1/255 and normalise")
