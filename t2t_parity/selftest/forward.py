"""Mistakes in the forward pass."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

import t2t_jax.models.t2t_vit
import t2t_jax.models.token_performer
import t2t_jax.models.token_transformer
import t2t_jax.models.transformer_block
import t2t_jax.models.vit
from parity.causes.switches.resize import weights
from t2t_parity.selftest.mutation import Apply, Mutation, along_channels, calling, patching, setting, within

BLOCK: Any = t2t_jax.models.transformer_block


def _forward(name: str, pair: str, module: str, cause: str | None, apply: Apply) -> Mutation:
    return Mutation(name, "forward", pair, module, cause, apply)


def _order(*order: int) -> Apply:
    """Pass q, k, v to the attention in another order."""

    def swapped(original: Any, q: Any, k: Any, v: Any, *rest: Any) -> Any:
        parts = (q, k, v)
        return original(*(parts[i] for i in order), *rest)

    return patching(BLOCK, dot_product_attention=swapped)


def _heads_first(self: Any, original: Any, x: jax.Array, rngs: Any = None) -> jax.Array:
    B, N, _ = x.shape
    qkv = self.qkv(x).reshape(B, N, self.num_heads, 3, -1)
    q, k, v = qkv.transpose(3, 0, 2, 1, 4)
    return BLOCK.dot_product_attention(q, k, v, self.scale, self.attn_drop, rngs)


def _residual_from_norm(self: Any, original: Any, x: jax.Array, rngs: Any = None) -> jax.Array:
    normed = self.norm1(x)
    x = normed + self.drop_path(self.attn(normed, rngs), rngs=rngs)
    return x + self.drop_path(self.mlp(self.norm2(x), rngs), rngs=rngs)


def _no_residual(self: Any, original: Any, x: jax.Array, rngs: Any = None) -> jax.Array:
    x = x + self.drop_path(self.attn(self.norm1(x), rngs), rngs=rngs)
    return self.drop_path(self.mlp(self.norm2(x), rngs), rngs=rngs)


def _no_norm(self: Any, original: Any, x: jax.Array, rngs: Any = None) -> jax.Array:
    self.norm1(x)
    x = x + self.drop_path(self.attn(x, rngs), rngs=rngs)
    return x + self.drop_path(self.mlp(self.norm2(x), rngs), rngs=rngs)


def _tokens_to_head(pooled: Any) -> Apply:
    return calling("", lambda self, original, x, rngs=None: self.head(pooled(self.forward_features(x, rngs))))


def _shifted_table(self: Any, original: Any, x: jax.Array, *arguments: Any) -> jax.Array:
    table = self.pos_embed[...]
    self.pos_embed[...] = jnp.roll(table, 1, axis=1)
    try:
        return original(x, *arguments)
    finally:
        self.pos_embed[...] = table


def _features_as(order: tuple[int, ...]) -> Any:
    def unfold(self: Any, original: Any, x: jax.Array) -> jax.Array:
        y, k = original(x), self.kernel
        return y.reshape(*y.shape[:2], x.shape[-1], k, k).transpose(0, 1, *(2 + i for i in order)).reshape(y.shape)

    return unfold


def _split_as(*order: int) -> Any:
    def split(original: Any, *args: Any, **options: Any) -> Any:
        parts = original(*args, **options)
        return [parts[i] for i in order]

    return split


def _over_queries(original: Any, attn: jax.Array, v: jax.Array) -> jax.Array:
    return jax.nn.softmax(attn, axis=-2) @ v


def _float32_softmax(original: Any, attn: jax.Array, v: jax.Array) -> jax.Array:
    return jax.nn.softmax(attn.astype(jnp.float32), axis=-1).astype(v.dtype) @ v


def _short(dtype: Any) -> Any:
    return lambda self, original, x: original(x).astype(dtype).astype(x.dtype)


def _short_matmul(self: Any, original: Any, x: jax.Array) -> jax.Array:
    short = jnp.bfloat16
    return x.astype(short).astype(x.dtype) @ self.kernel[...].astype(x.dtype) + along_channels(self.bias[...], x)


def _dropping(self: Any, original: Any, x: jax.Array, rngs: Any = None) -> jax.Array:
    kept = jax.random.bernoulli(jax.random.key(0), 0.9, x.shape)
    return jnp.where(kept, x / 0.9, 0.0)


def _skip_missing(self: Any, original: Any, x: jax.Array) -> jax.Array:
    q, k, v = jnp.split(self.qkv(x), 3, axis=-1)
    return self.proj(jax.nn.softmax(jnp.einsum("bnd,bmd->bnm", q * self.scale, k), axis=-1) @ v)


def _squeeze_without_cls(self: Any, original: Any, x: jax.Array) -> jax.Array:
    return x * self.fc(x[:, 1:].mean(axis=1))[:, None]


def _reversed_concat(original: Any, parts: Any, *rest: Any, **options: Any) -> Any:
    return original(tuple(reversed(parts)), *rest, **options)


def _dense_reversed(self: Any, original: Any, x: jax.Array, rngs: Any = None) -> jax.Array:
    y, growth = original(x, rngs), self.dense_linear.out_features
    return jnp.concatenate((y[..., -growth:], y[..., :-growth]), axis=2)


def _ghost_wrong_half(self: Any, original: Any, x: jax.Array, rngs: Any = None) -> jax.Array:
    q, k, v = self.q(x), self.k(x), self.v(x)
    q = self._heads(q, self.cheap_operation_q(q))
    k = self._heads(k, self.cheap_operation_k(v))
    v = self._heads(v, self.cheap_operation_v(v))
    x = BLOCK.dot_product_attention(q, k, v, self.scale, self.attn_drop, rngs)
    return self.proj_drop(self.proj(x), rngs=rngs)


def _one_head(self: Any, original: Any, x: jax.Array, rngs: Any = None) -> jax.Array:
    x = self.forward_features(x, rngs)
    logits = self.head(x[:, 0])
    self.head_dist(x[:, 1])
    return logits


def _flipped_kernel(self: Any, original: Any, x: jax.Array) -> jax.Array:
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


def _resize_as_pil(self: Any, original: Any, x: jax.Array) -> jax.Array:
    kernel = weights(8, 12, -0.5, antialias=False, edge="renormalise").numpy()
    return jnp.einsum("th,sw,bhwc->btsc", kernel, kernel, x)


def _summed(self: Any, original: Any, x: jax.Array) -> jax.Array:
    x = self.act1(self.norm1(self.conv1(x)))
    x = x + self.act2(self.norm2(self.conv2(x)))
    return self.head(self.down(x).sum((1, 2)))


ATTENTION = "tokens_to_token.attention1"

FORWARD = (
    _forward(
        "GELU by tanh",
        "performer",
        "blocks.0.mlp.act",
        "gelu form",
        calling("blocks.0.mlp.act", lambda self, original, x: jax.nn.gelu(x, approximate=True)),
    ),
    _forward(
        "ReLU for GELU",
        "vit",
        "blocks.0.mlp.act",
        "activation",
        calling("blocks.0.mlp.act", lambda self, original, x: jax.nn.relu(x)),
    ),
    _forward("LayerNorm eps 1e-6", "performer", "blocks.0.norm1", "epsilon", setting("blocks.0.norm1", epsilon=1e-6)),
    _forward("LayerNorm eps 1e-5 in ViT", "vit", "norm", "epsilon", setting("norm", epsilon=1e-5)),
    _forward("fast variance", "offset", "norm", "fast variance", setting("norm", use_fast_variance=True)),
    _forward(
        "LayerNorm without scale",
        "se",
        "norm",
        "scale",
        calling("norm", lambda self, original, x: (original(x) - self.bias[...]) / self.scale[...] + self.bias[...]),
    ),
    _forward("q and k exchanged", "performer", "blocks.0.attn", "q/k/v order", _order(1, 0, 2)),
    _forward("v, q, k for q, k, v", "vit", "blocks.0.attn", "q/k/v order", _order(2, 0, 1)),
    _forward(
        "performer reads q, k, v",
        "performer",
        ATTENTION,
        "q/k/v order",
        within(t2t_jax.models.token_performer, "jnp", split=_split_as(1, 0, 2)),
    ),
    _forward(
        "heads before q, k, v",
        "performer",
        "blocks.0.attn",
        "axis order",
        calling("blocks.0.attn", _heads_first, "attend"),
    ),
    _forward(
        "scale by the embedding's width",
        "performer",
        "blocks.0.attn",
        "attention scale",
        setting("blocks.0.attn", scale=32**-0.5),
    ),
    _forward("attention not scaled", "vit", "blocks.0.attn", "attention scale", setting("blocks.0.attn", scale=1.0)),
    _forward(
        "scale by the wrong width",
        "transformer",
        f"{ATTENTION}.attn",
        "attention scale",
        setting(f"{ATTENTION}.attn", scale=8**-0.5),
    ),
    _forward(
        "softmax over the queries",
        "vit",
        "blocks.0.attn",
        "softmax axis",
        patching(BLOCK, softmax_product=_over_queries),
    ),
    _forward(
        "softmax in float32", "vit", "blocks.0.attn", "float32 leak", patching(BLOCK, softmax_product=_float32_softmax)
    ),
    _forward(
        "LayerNorm in float32", "vit", "blocks.0.norm2", "float32 leak", calling("blocks.0.norm2", _short(jnp.float32))
    ),
    _forward(
        "bfloat16 product", "performer", "blocks.0.mlp.fc1", "bfloat16 leak", calling("blocks.0.mlp.fc1", _short_matmul)
    ),
    _forward("residual from the normed", "performer", "blocks.0", "residual", calling("blocks.0", _residual_from_norm)),
    _forward("residual missing", "ghost", "blocks.0", "residual", calling("blocks.0", _no_residual)),
    _forward("attention without its norm", "vit", "blocks.0", "wrong tensor", calling("blocks.0", _no_norm)),
    _forward(
        "skip connection v missing",
        "transformer",
        f"{ATTENTION}.attn",
        "residual",
        calling(f"{ATTENTION}.attn", _skip_missing),
    ),
    _forward(
        "class token last",
        "performer",
        "the model",
        "concat order",
        within(t2t_jax.models.t2t_vit, "jnp", concatenate=_reversed_concat),
    ),
    _forward("mean of the tokens", "performer", "the model", "pooling", _tokens_to_head(lambda x: x.mean(axis=1))),
    _forward("last token for the first", "se", "the model", "token taken", _tokens_to_head(lambda x: x[:, -1])),
    _forward(
        "positions off by one",
        "performer",
        "the model",
        "shifted by one",
        calling("", _shifted_table, "forward_features"),
    ),
    _forward(
        "features kh, kw, channel",
        "performer",
        "tokens_to_token.soft_split0",
        "unfold order",
        calling("tokens_to_token.soft_split0", _features_as((1, 2, 0))),
    ),
    _forward(
        "features channel, kw, kh",
        "transformer",
        "tokens_to_token.soft_split1",
        "unfold order",
        calling("tokens_to_token.soft_split1", _features_as((0, 2, 1))),
    ),
    _forward("performer eps 1e-6", "performer", ATTENTION, "epsilon", setting(ATTENTION, epsilon=1e-6)),
    _forward(
        "squeeze without the class token",
        "se",
        "blocks.0.attn.se_layer",
        "pooling",
        calling("blocks.0.attn.se_layer", _squeeze_without_cls),
    ),
    _forward(
        "hard sigmoid gate",
        "se",
        "blocks.0.attn.se_layer.fc.3",
        "activation",
        calling("blocks.0.attn.se_layer.fc.3", lambda self, original, x: jax.nn.hard_sigmoid(x)),
    ),
    _forward("growth before the input", "dense", "blocks.0", "concat order", calling("blocks.0", _dense_reversed)),
    _forward(
        "ghost of the wrong half", "ghost", "blocks.0.attn", "wrong tensor", calling("blocks.0.attn", _ghost_wrong_half)
    ),
    _forward("distillation head left out", "distilled", "the model", "residual", calling("", _one_head)),
    _forward(
        "distillation token first",
        "distilled",
        "the model",
        "concat order",
        within(
            t2t_jax.models.vit,
            "jnp",
            concatenate=lambda original, parts, axis: original((parts[1], parts[0], parts[2]), axis),
        ),
    ),
    _forward(
        "kernel flipped",
        "convolution",
        "tokens_to_token.soft_split0",
        "kernel flipped",
        calling("tokens_to_token.soft_split0", _flipped_kernel),
    ),
    _forward("padding SAME", "convnet", "down", "padding", setting("down", padding="SAME")),
    _forward(
        "bias forgotten",
        "convolution",
        "tokens_to_token.project",
        "bias",
        calling("tokens_to_token.project", lambda self, original, x: original(x) - self.bias[...]),
    ),
    _forward("BatchNorm eps 1e-3", "convnet", "norm1", "epsilon", setting("norm1", epsilon=1e-3)),
    _forward("BatchNorm by the batch", "convnet", "norm1", "batch statistics", calling("norm1", _by_batch)),
    _forward(
        "LeakyReLU for ReLU",
        "convnet",
        "act1",
        "activation",
        calling("act1", lambda self, original, x: jax.nn.leaky_relu(x)),
    ),
    _forward("sum for mean", "convnet", "the model", "pooling", calling("", _summed)),
    _forward("bicubic with a = -0.5", "resize", "the model", "resize", calling("", _resize_as_pil, "resized")),
    _forward(
        "features scaled",
        "vit",
        "patch_embed",
        "scale",
        calling("patch_embed", lambda self, original, x: original(x) * 32**0.5),
    ),
    _forward("dropout left on", "performer", "pos_drop", "dropout on", calling("pos_drop", _dropping)),
    _forward(
        "infinite on one side",
        "vit",
        "blocks.0.mlp.fc2",
        None,
        calling("blocks.0.mlp.fc2", lambda self, original, x: original(x).at[0, 0, 0].set(jnp.inf)),
    ),
)
