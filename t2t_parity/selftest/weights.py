"""Mistakes in the conversion of weights, and in the layout of the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import t2t_jax.models.t2t_vit
from t2t_parity.selftest.mutation import Apply, Mutation, calling, changing, exchanged, patching


def _conversion(name: str, pair: str, module: str | None, cause: str | None, apply: Apply) -> Mutation:
    return Mutation(name, "conversion", pair, module, cause, apply)


def _data(name: str, pair: str, module: str, cause: str | None, apply: Apply) -> Mutation:
    return Mutation(name, "data", pair, module, cause, apply)


def _thirds(x: jax.Array) -> jax.Array:
    q, k, v = jnp.split(x, 3, axis=-1)
    return jnp.concatenate((k, q, v), axis=-1)


def _next_float(x: jax.Array) -> jax.Array:
    return x.at[0, 0].set(jnp.nextafter(x[0, 0], jnp.inf))


def _trained_table(model: Any) -> None:
    model.pos_embed = nnx.Param(model.pos_embed[...])


CONVERSION = (
    _conversion(
        "square kernel not transposed",
        "performer",
        "blocks.0.attn.proj",
        "kernel transposed",
        changing("blocks.0.attn.proj.kernel", jnp.transpose),
    ),
    _conversion(
        "q and k exchanged in the kernel",
        "vit",
        "blocks.0.attn.qkv",
        "parts order",
        changing("blocks.0.attn.qkv.kernel", _thirds),
    ),
    _conversion(
        "height and width of a kernel exchanged",
        "convolution",
        "tokens_to_token.soft_split0",
        "kernel transposed",
        changing("tokens_to_token.soft_split0.kernel", lambda x: x.transpose(1, 0, 2, 3)),
    ),
    _conversion(
        "kernel rotated",
        "convnet",
        "down",
        "kernel flipped",
        changing("down.kernel", lambda x: x[::-1, ::-1]),
    ),
    _conversion(
        "groups interleaved",
        "convnet",
        "conv2",
        "groups",
        changing("conv2.kernel", lambda x: x.reshape(3, 3, 4, 2, 4).swapaxes(3, 4).reshape(x.shape)),
    ),
    _conversion(
        "biases of two layers exchanged",
        "vit",
        "blocks.0.attn.proj",
        "bias",
        exchanged("blocks.0.attn.proj.bias", "blocks.0.mlp.fc2.bias"),
    ),
    _conversion(
        "kernel rounded to bfloat16",
        "performer",
        "blocks.0.mlp.fc1",
        "bfloat16 leak",
        changing("blocks.0.mlp.fc1.kernel", lambda x: x.astype(jnp.bfloat16).astype(x.dtype)),
    ),
    _conversion(
        "positions shifted by one",
        "performer",
        "the model",
        "shifted by one",
        changing("pos_embed", lambda x: jnp.roll(x, 1, axis=1)),
    ),
    _conversion("running mean and variance exchanged", "convnet", "norm1", None, exchanged("norm1.mean", "norm1.var")),
    _conversion("one number off by one bit", "vit", "head", None, changing("head.kernel", _next_float)),
    _conversion("frozen table trained", "performer", None, None, _trained_table),
)


def _columns_first(original: Any, x: jax.Array, grid: tuple[int, int]) -> jax.Array:
    return original(x, grid).swapaxes(1, 2)


def _patches_by_column(self: Any, original: Any, x: jax.Array) -> jax.Array:
    x = self.proj(x).swapaxes(1, 2)
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _images(change: Callable[[jax.Array], jax.Array]) -> Apply:
    return calling("", lambda self, original, x, rngs=None: original(change(x), rngs))


DATA = (
    _data("height and width exchanged", "vit", "the model", "axis order", _images(lambda x: x.swapaxes(1, 2))),
    _data("blue, green, red", "performer", "the model", "axis flipped", _images(lambda x: x[..., ::-1])),
    _data("upside down", "vit", "the model", "axis flipped", _images(lambda x: x[:, ::-1])),
    _data("images in another order", "vit", "the model", "axis flipped", _images(lambda x: x[::-1])),
    _data("images divided by 255 again", "se", "the model", "scale", _images(lambda x: x / 255)),
    _data(
        "images as bfloat16",
        "vit",
        "the model",
        "bfloat16 leak",
        _images(lambda x: x.astype(jnp.bfloat16).astype(x.dtype)),
    ),
    _data(
        "patches column by column",
        "vit",
        "patch_embed",
        "axis order",
        calling("patch_embed", _patches_by_column),
    ),
    _data(
        "tokens to image column by column",
        "performer",
        "tokens_to_token",
        "axis order",
        patching(t2t_jax.models.t2t_vit, _as_image=_columns_first),
    ),
)
