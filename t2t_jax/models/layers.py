"""Flax layers with the defaults and numerics of PyTorch, so that both frameworks compute the same values.

Shapes: B batch, N tokens, C channels, H W image, L windows, K kernel size, S stride, P padding.
`spec` holds the keyword arguments common to all layers: dtype (of the computation; None for that of the parameters and
the input), param_dtype, rngs.
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
"""Rows of a bfloat16 tile in TPU memory; a float32 tile has half as many."""


class Buffer(nnx.Variable):
    """A tensor that is saved and converted, but neither trained nor decayed (`pos_embed`, the performer's `w`)."""


def trunc_normal(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Sample from N(0, 0.02) like timm's trunc_normal_(std=0.02); its bounds +-2 are absolute (100 sigma)."""
    return jnp.clip(0.02 * jax.random.normal(key, shape, dtype), -2.0, 2.0)


class Linear(nnx.Linear):
    """Linear layer x @ kernel + bias, initialised with a N(0, 0.02) kernel and a zero bias.

    The leading dimensions are flattened, so that the kernel's gradient is a single matrix product; otherwise XLA
    computes it from transposed copies (a sixth of the attention's time on a CPU). Except on a CPU, they are not
    flattened if the number of tokens is not a multiple of `TILE_ROWS`, e.g. 197: the tiled memory of a TPU would
    require a copy (docs/performance.md has the cost).
    """

    def __init__(self, in_features: int, out_features: int, *, use_bias: bool = True, **spec: Any) -> None:
        super().__init__(in_features, out_features, use_bias=use_bias, kernel_init=trunc_normal, **spec)

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        if not on_cpu() and math.prod(inputs.shape[1:-1]) % TILE_ROWS:
            return super().__call__(inputs, out_sharding)
        x = super().__call__(inputs.reshape(-1, inputs.shape[-1]), out_sharding)
        return x.reshape(*inputs.shape[:-1], x.shape[-1])


class LayerNorm(nnx.LayerNorm):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over channels, computed in at least float32.

    flax's defaults differ from PyTorch's: epsilon 1e-6, and `use_fast_variance`, which loses all digits to
    cancellation when the mean is large. flax also multiplies 1 / sqrt by `scale` first, which creates an array of the
    input's shape instead of one value per token.
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
    """Return an initialiser that samples from U(-bound, bound)."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Dropout(nnx.Dropout):
    """Dropout; in training, pass `rngs` with the call."""


class DropPath(Dropout):
    """Stochastic depth (arXiv 1603.09382): drops the residual branch of random samples and rescales the others."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__(rate, broadcast_dims=(1, 2))


@jax.custom_jvp
def gelu(x: jax.Array) -> jax.Array:
    """Return x Phi(x), Phi being the normal distribution function (arXiv 1606.08415), computed in at least float32.

    Uses erf, like PyTorch. `jax.nn.gelu` uses erfc, which needs one more exponential and two divisions per element (a
    quarter of the MLP's time on a CPU). One array is saved for the backward pass; autodiff would save two.
    """
    return _gelu_and_slope(x)[0]


@gelu.defjvp
def _gelu_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    y, slope = _gelu_and_slope(*primals)
    return y, tangents[0] * slope


def _gelu_and_slope(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return x Phi(x) and its derivative Phi(x) + x phi(x)."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    normal = 0.5 * (1.0 + jax.lax.erf(wide * math.sqrt(0.5)))
    density = jnp.exp(-0.5 * wide * wide) * (1 / math.sqrt(2 * math.pi))
    return (wide * normal).astype(x.dtype), (normal + wide * density).astype(x.dtype)


class GELU(nnx.Module):
    """Exact GELU with erf (flax's default is the tanh approximation)."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return gelu(x)


class Activation(nnx.Module):
    """Module that applies an element-wise function (relu, sigmoid, tanh)."""

    def __init__(self, function: Callable[[jax.Array], jax.Array]) -> None:
        self.function = function

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.function(x)


class Identity(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return x


class Sequential(nnx.List):
    """Layers applied in order, with the paths `0`, `1`, ... as in PyTorch (`nnx.Sequential` inserts `layers`)."""

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        for layer in self:
            x = layer(x, rngs=rngs) if isinstance(layer, nnx.Dropout) else layer(x)
        return x


class Unfold(nnx.Module):
    """Soft split, PyTorch's `nn.Unfold` for NHWC images: (B, H, W, C) -> (B, L, C * K * K), channel-major.

    On a CPU, the image is divided into cells of S x S pixels, and the windows are assembled from slices of the cells.
    On other platforms a convolution returns the same values in the same order, since slicing reads and writes far more
    TPU memory (docs/performance.md). It runs at the highest precision: the default would round the pixels.
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
        steps = range(math.ceil(K / S))  # cells that a window spans along each axis
        crops = [(P, (n + len(steps) - 1) * S - side - P, 0) for n, side in zip((rows, columns), sides, strict=True)]
        x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *crops, (0, 0, 0)])
        x = x.reshape(B, rows + len(steps) - 1, S, columns + len(steps) - 1, S, C).transpose(0, 1, 3, 5, 2, 4)
        bands = [x[:, i : i + rows, ..., : K - i * S, :] for i in steps]
        parts = [[band[:, :, j : j + columns, ..., : K - j * S] for j in steps] for band in bands]
        windows = jnp.concatenate([jnp.concatenate(part, axis=-1) for part in parts], axis=-2)
        return windows.reshape(B, rows * columns, C * K * K)


def check_images(x: jax.Array, in_chans: int, img_size: tuple[int, int]) -> None:
    """Raise ValueError unless `x` has a floating-point dtype and the shape (B, *img_size, in_chans)."""
    if x.ndim != 4 or tuple(x.shape[1:]) != (*img_size, in_chans):
        raise ValueError(
            f"expected images (B, {img_size[0]}, {img_size[1]}, {in_chans}), got {tuple(x.shape)}: resize the images, "
            "or create the model with their img_size and in_chans"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"expected floating-point images, got {x.dtype}: scale them by 1/255 and normalise")
