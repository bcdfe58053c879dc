"""Mistakes in the BERT and in the vision transformer: padding, pooling, tokens, heads."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from t2t_parity.selftest.foreign.encoders import D, H
from t2t_parity.selftest.mutation import along_channels, calling, changing, mistakes_in, setting

stop = jax.lax.stop_gradient
bert, timm = mistakes_in("bert"), mistakes_in("timm")

# ---- BERT ----

EMBEDDINGS, ATTENTION = "embeddings", "layer.0.attention"


def _softmax(scores: Any) -> Any:
    """Replace the attention weights by the softmax of scores(scores, mask)."""
    return lambda self, original, given, mask: jax.nn.softmax(scores(given, mask.astype(given.dtype)), axis=-1)


def _mask_after(self: Any, original: Any, scores: jax.Array, mask: jax.Array) -> jax.Array:
    return jax.nn.softmax(scores, axis=-1) * mask[:, None, None].astype(scores.dtype)


def _pre_norm(self: Any, original: Any, x: jax.Array, mask: jax.Array) -> jax.Array:
    x = self.attention(x, mask)
    return self.output(self.act(self.intermediate(self.LayerNorm(x)))) + x


def _masked_table(x: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.where(mask[..., None] == 1, x, -jnp.inf)


def _without_types(self: Any, original: Any, ids: jax.Array) -> jax.Array:
    self.token_type_embeddings(self.types(ids))
    x = self.word_embeddings(ids) + self.position_embeddings(self.positions(ids))[None]
    return self.LayerNorm(x)


def _dense_twice(self: Any, original: Any, x: jax.Array, mask: jax.Array) -> jax.Array:
    x = self.attention(x, mask)
    return self.LayerNorm(self.output(self.act(self.intermediate(x))))


def _whole_table(self: Any, original: Any) -> jax.Array:
    return self.embedding[...]


BERT = (
    bert(
        "padding seen, words hidden",
        ATTENTION,
        "attention mask",
        calling(ATTENTION, _softmax(lambda s, m: s + m[:, None, None] * -10000.0), "weights"),
        also=("residual",),
    ),
    bert(
        "padding hidden along the queries",
        ATTENTION,
        "attention mask",
        calling(ATTENTION, _softmax(lambda s, m: s + (1 - m[:, None, :, None]) * -10000.0), "weights"),
    ),
    bert("mask after the softmax", ATTENTION, "attention mask", calling(ATTENTION, _mask_after, "weights")),
    bert(
        "mask times the scores",
        ATTENTION,
        "attention mask",
        calling(ATTENTION, _softmax(lambda s, m: s * m[:, None, None]), "weights"),
    ),
    bert(
        "mask added as it is",
        ATTENTION,
        "attention mask",
        calling(ATTENTION, _softmax(lambda s, m: s + m[:, None, None]), "weights"),
    ),
    bert(
        "mask forgotten",
        ATTENTION,
        "attention mask",
        calling(ATTENTION, _softmax(lambda s, m: s), "weights"),
        also=(
            "residual",
            "step left out",
        ),
    ),
    bert(
        "mask of -10",
        ATTENTION,
        None,
        calling(ATTENTION, _softmax(lambda s, m: s + (1 - m[:, None, None]) * -10.0), "weights"),
        also=("attention mask",),
    ),
    bert(
        "softmax over the queries",
        ATTENTION,
        "softmax axis",
        calling(
            ATTENTION,
            lambda self, original, s, m: jax.nn.softmax(s + (1 - m[:, None, None].astype(s.dtype)) * -10000.0, axis=-2),
            "weights",
        ),
    ),
    bert("attention scaled by the width", ATTENTION, "attention scale", setting(ATTENTION, scale=D**-0.5)),
    bert(
        "mean over the padding too",
        "the model",
        "pooling",
        calling("", lambda self, original, x, mask: x.mean(1), "pooled"),
    ),
    bert(
        "sum of the words over the length",
        "the model",
        "pooling",
        calling("", lambda self, original, x, mask: (x * mask[..., None].astype(x.dtype)).mean(1), "pooled"),
        also=("scale",),
    ),
    bert(
        "first token for the mean",
        "the model",
        "pooling",
        calling("", lambda self, original, x, mask: x[:, 0], "pooled"),
        also=("token taken",),
    ),
    bert(
        "largest for the mean",
        "the model",
        None,
        calling("", lambda self, original, x, mask: _masked_table(x, mask).max(1), "pooled"),
        also=("pooling",),
    ),
    bert(
        "pooled without tanh",
        "the model",
        "step left out",
        calling("", lambda self, original, x: x, "squashed"),
        also=("activation",),
    ),
    bert(
        "positions from 2",
        EMBEDDINGS,
        "position offset",
        calling(EMBEDDINGS, lambda self, original, ids: 2 + jnp.arange(ids.shape[1]), "positions"),
    ),
    bert(
        "positions backwards",
        EMBEDDINGS,
        "axis flipped",
        calling(EMBEDDINGS, lambda self, original, ids: jnp.arange(ids.shape[1])[::-1], "positions"),
        also=("position offset",),
    ),
    bert(
        "second kind of token",
        EMBEDDINGS,
        None,
        calling(EMBEDDINGS, lambda self, original, ids: jnp.ones_like(ids), "types"),
        also=("token taken", "position offset"),
    ),
    bert("kind of token forgotten", EMBEDDINGS, "residual", calling(EMBEDDINGS, _without_types)),
    bert("LayerNorm eps 1e-6", f"{EMBEDDINGS}.LayerNorm", "epsilon", setting(f"{EMBEDDINGS}.LayerNorm", epsilon=1e-6)),
    bert("pre-norm", "layer.0", None, calling("layer.0", _pre_norm), also=("wrong tensor",)),
    bert("residual missing", "layer.0", "residual", calling("layer.0", _dense_twice)),
    bert(
        "GELU by tanh",
        "layer.0",
        "gelu form",
        calling("layer.0", lambda self, original, x: jax.nn.gelu(x, approximate=True), "act"),
    ),
    bert("ReLU for GELU", "layer.0", "activation", calling("layer.0", lambda self, original, x: jax.nn.relu(x), "act")),
    bert(
        "padding trained",
        f"{EMBEDDINGS}.word_embeddings",
        "padding_idx",
        calling(f"{EMBEDDINGS}.word_embeddings", _whole_table, "table"),
        "gradient",
    ),
    bert(
        "pooled does not train the encoder",
        "the model",
        "gradient cut",
        calling("", lambda self, original, x, mask: stop(original(x, mask)), "pooled"),
        "gradient",
    ),
)

# ---- vision transformer ----

ATTN, BLOCK = "blocks.0.attn", "blocks.0"


def _token_late(self: Any, original: Any, x: jax.Array) -> jax.Array:
    token = jnp.broadcast_to(self.cls_token[...], (x.shape[0], 1, D))
    return jnp.concatenate((x, token), axis=1) + self.pos_embed[...]


def _positions_first(self: Any, original: Any, x: jax.Array) -> jax.Array:
    """Give the class token no position, and the patches positions from 0, as in models without its position."""
    token = jnp.broadcast_to(self.cls_token[...], (x.shape[0], 1, D))
    return jnp.concatenate((token, x + self.pos_embed[...][:, :-1]), axis=1)


def _keys_not_normed(self: Any, original: Any, x: jax.Array) -> jax.Array:
    q, k, v = self.parts(self.qkv(x))
    self.k_norm(k)
    logits = self.q_norm(q) @ k.swapaxes(-1, -2) * self.scale
    y = (jax.nn.softmax(logits, axis=-1) @ v).swapaxes(1, 2)
    return self.proj(y.reshape(x.shape))


def _scaled_before(self: Any, original: Any, x: jax.Array) -> jax.Array:
    """Apply the scale to q before its norm, which cancels it."""
    q, k, v = self.parts(self.qkv(x))
    logits = self.q_norm(q * self.scale) @ self.k_norm(k).swapaxes(-1, -2)
    y = (jax.nn.softmax(logits, axis=-1) @ v).swapaxes(1, 2)
    return self.proj(y.reshape(x.shape))


def _scale_late(self: Any, original: Any, x: jax.Array) -> jax.Array:
    return (x + self.attn(self.norm1(x))) * self.gamma[...][None, None]


def _parts(order: Any) -> Any:
    """Read q, k, v from the 3 D features in another layout of (q k v, head, feature)."""
    return lambda self, original, x: order(x)


TIMM = (
    timm(
        "heads outside q, k, v",
        ATTN,
        "head order",
        calling(ATTN, _parts(lambda x: x.reshape(*x.shape[:2], H, 3, -1).transpose(3, 0, 2, 1, 4)), "parts"),
        also=("axis order",),
    ),
    timm(
        "features outside heads",
        ATTN,
        "head order",
        calling(ATTN, _parts(lambda x: x.reshape(*x.shape[:2], 3, -1, H).transpose(2, 0, 4, 1, 3)), "parts"),
        also=("axis order",),
    ),
    timm(
        "v before k",
        ATTN,
        "q/k/v order",
        calling(ATTN, lambda self, original, x: original(x)[jnp.array([0, 2, 1])], "parts"),
    ),
    timm("keys not normed", ATTN, "wrong tensor", calling(ATTN, _keys_not_normed), also=("step left out",)),
    timm("scaled in front of the norm", ATTN, None, calling(ATTN, _scaled_before), also=("attention scale", "epsilon")),
    timm("scaled twice", ATTN, "attention scale", setting(ATTN, scale=H / D)),
    timm("eps of the keys' norm 1e-6", f"{ATTN}.k_norm", "epsilon", setting(f"{ATTN}.k_norm", epsilon=1e-6)),
    timm("class token last", "the model", "concat order", calling("", _token_late, "with_class")),
    timm(
        "positions without the class token",
        "the model",
        None,
        calling("", _positions_first, "with_class"),
        also=("position offset",),
    ),
    timm(
        "patches column by column",
        "the model",
        "axis order",
        calling("", lambda self, original, x: original(x.swapaxes(1, 2)), "as_tokens"),
    ),
    timm(
        "mean with the class token", "the model", "pooling", calling("", lambda self, original, x: x.mean(1), "pooled")
    ),
    timm(
        "class token for the mean",
        "the model",
        "pooling",
        calling("", lambda self, original, x: x[:, 0], "pooled"),
        also=("token taken",),
    ),
    timm(
        "branch not scaled",
        BLOCK,
        "step left out",
        calling(BLOCK, lambda self, original, x: x, "scaled"),
        also=("scale", "residual"),
    ),
    timm("scale behind the sum", BLOCK, None, calling(BLOCK, _scale_late)),
    timm(
        "scale of 1 + gamma",
        BLOCK,
        "1 + scale",
        calling(BLOCK, lambda self, original, x: x * (1 + along_channels(self.gamma[...], x)), "scaled"),
    ),
    timm(
        "height and width of patches exchanged",
        "patch_embed",
        "kernel transposed",
        changing("patch_embed.kernel", lambda x: x.swapaxes(0, 1)),
        "conversion",
    ),
    timm(
        "positions shifted by one",
        "the model",
        "shifted by one",
        changing("pos_embed", lambda x: jnp.roll(x, 1, axis=1)),
        "conversion",
        also=("position offset",),
    ),
    timm("eps of the last norm 1e-5", "fc_norm", "epsilon", setting("fc_norm", epsilon=1e-5)),
    timm(
        "scale not trained",
        BLOCK,
        "gradient cut",
        calling(BLOCK, lambda self, original, x: x * stop(along_channels(self.gamma[...], x)), "scaled"),
        "gradient",
    ),
    timm(
        "class token not trained",
        "the model",
        "gradient cut",
        calling(
            "",
            lambda self, original, x: (
                jnp.concatenate((stop(jnp.broadcast_to(self.cls_token[...], (x.shape[0], 1, D))), x), axis=1)
                + self.pos_embed[...]
            ),
            "with_class",
        ),
        "gradient",
    ),
)

ENCODER_MISTAKES = (*BERT, *TIMM)
