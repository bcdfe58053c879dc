"""Mistakes in the GPT and in the Llama: positions, masks, heads, gates, scales."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from t2t_parity.selftest.foreign.architecture import join_heads, split_heads, upper
from t2t_parity.selftest.foreign.decoders import D, H, K, angles, rotated
from t2t_parity.selftest.mutation import Apply, along_channels, at, calling, changing, mistakes_in, setting

stop = jax.lax.stop_gradient
gpt, llama = mistakes_in("gpt"), mistakes_in("llama")

# ---- GPT ----


def _positions(first: int) -> Apply:
    def embedded(self: Any, original: Any, ids: jax.Array) -> jax.Array:
        return self.wte(ids) + self.wpe(first + jnp.arange(ids.shape[1]))[None]

    return calling("", embedded, "embedded")


def _masked_where(blocked: Any, value: float = -jnp.inf) -> Any:
    """Use another mask in the softmax: blocked(N), of shape (1, 1, query, key)."""

    def weights(self: Any, original: Any, logits: jax.Array) -> jax.Array:
        return jax.nn.softmax(jnp.where(blocked(logits.shape[-1]), value, logits), axis=-1)

    return weights


def _mask_times(self: Any, original: Any, logits: jax.Array) -> jax.Array:
    return jax.nn.softmax(jnp.where(upper(logits.shape[-1], 1), 0.0, logits), axis=-1)


def _mask_after(self: Any, original: Any, logits: jax.Array) -> jax.Array:
    return jnp.where(upper(logits.shape[-1], 1), 0.0, jax.nn.softmax(logits, axis=-1))


def _unmasked(self: Any, original: Any, logits: jax.Array) -> jax.Array:
    return jax.nn.softmax(logits, axis=-1)


def _window(length: int) -> jax.Array:
    return upper(length, 1) | ~upper(length, -2)


def _per_head(self: Any, original: Any, x: jax.Array) -> Any:
    """Read the features as (head, q k v, feature), the layout of GPT-NeoX."""
    return x.reshape(*x.shape[:2], H, 3, -1).transpose(3, 0, 2, 1, 4)


def _post_norm(self: Any, original: Any, x: jax.Array) -> jax.Array:
    x = self.ln_1(x + self.attn(x))
    return self.ln_2(x + self.drop(self.mlp(x)))


def _parallel(self: Any, original: Any, x: jax.Array) -> jax.Array:
    """Compute attention and MLP in parallel, as in GPT-J."""
    return x + self.attn(self.ln_1(x)) + self.drop(self.mlp(self.ln_2(x)))


def _from_normed(self: Any, original: Any, x: jax.Array) -> jax.Array:
    x = x + self.attn(self.ln_1(x))
    y = self.ln_2(x)
    return y + self.drop(self.mlp(y))


def _without_last_norm(self: Any, original: Any, ids: jax.Array) -> jax.Array:
    x = self.drop(self.embedded(ids))
    for block in self.h:
        x = block(x)
    self.ln_f(x)
    return self.head(x)


def _untrained_positions(self: Any, original: Any, ids: jax.Array) -> jax.Array:
    return self.wte(ids) + stop(self.wpe(jnp.arange(ids.shape[1])))[None]


def _without_dropout(self: Any, original: Any, x: jax.Array) -> jax.Array:
    x = x + self.attn(self.ln_1(x))
    return x + self.mlp(self.ln_2(x))


def _dropping_weights(model: Any) -> None:
    """Also apply dropout to the attention weights."""
    at(model, ATTN).extra = nnx.Dropout(0.1, rngs=nnx.Rngs(0))
    calling(ATTN, lambda self, original, logits: self.extra(original(logits)), "weights")(model)


def _short_weights(self: Any, original: Any, logits: jax.Array) -> jax.Array:
    return original(logits).astype(jnp.bfloat16).astype(logits.dtype)


ATTN, HEAD = "h.0.attn", "head"

GPT = (
    gpt("positions from 1", "the model", "position offset", _positions(1), also=("shifted by one",)),
    gpt("positions from 2", "the model", "position offset", _positions(2)),
    gpt(
        "embedding times the root of the width",
        "the model",
        "scale",
        calling(
            "",
            lambda self, original, ids: self.wte(ids) * D**0.5 + self.wpe(jnp.arange(ids.shape[1]))[None],
            "embedded",
        ),
        also=("residual",),
    ),
    gpt(
        "head scaled by the width",
        "the model",
        "scale",
        calling("", lambda self, original, x: original(x) * D**-0.5, HEAD),
    ),
    gpt(
        "logits capped",
        "the model",
        None,
        calling("", lambda self, original, x: 3 * jnp.tanh(original(x) / 3), HEAD),
        also=("activation", "extra step", "soft cap"),
    ),
    gpt(
        "head without the last norm",
        "the model",
        None,
        calling("", _without_last_norm),
        also=("wrong tensor", "step left out"),
    ),
    gpt("mask one later", ATTN, "attention mask", calling(ATTN, _masked_where(lambda n: upper(n, 2)), "weights")),
    gpt(
        "mask transposed",
        ATTN,
        "attention mask",
        calling(ATTN, _masked_where(lambda n: upper(n, 1).swapaxes(-1, -2)), "weights"),
    ),
    gpt("mask forgotten", ATTN, "attention mask", calling(ATTN, _unmasked, "weights")),
    gpt("mask times the scores", ATTN, "attention mask", calling(ATTN, _mask_times, "weights")),
    gpt("mask after the softmax", ATTN, "attention mask", calling(ATTN, _mask_after, "weights")),
    gpt("window of three", ATTN, None, calling(ATTN, _masked_where(_window), "weights"), also=("attention mask",)),
    gpt(
        "k before q",
        ATTN,
        "q/k/v order",
        calling(ATTN, lambda self, original, x: [original(x)[i] for i in (1, 0, 2)], "parts"),
    ),
    gpt("heads outside q, k, v", ATTN, "head order", calling(ATTN, _per_head, "parts")),
    gpt("attention not scaled", ATTN, "attention scale", setting(ATTN, scale=1.0)),
    gpt("attention scaled by the width", ATTN, "attention scale", setting(ATTN, scale=D**-0.5)),
    gpt("weights in bfloat16", ATTN, "bfloat16 leak", calling(ATTN, _short_weights, "weights")),
    gpt(
        "exact GELU",
        "h.0.mlp",
        "gelu form",
        calling("h.0.mlp", lambda self, original, x: jax.nn.gelu(x, approximate=False), "act"),
    ),
    gpt(
        "sigmoid GELU",
        "h.0.mlp",
        "activation",
        calling("h.0.mlp", lambda self, original, x: x * jax.nn.sigmoid(1.702 * x), "act"),
        also=("gelu form",),
    ),
    gpt("LayerNorm eps 1e-6", "h.0.ln_1", "epsilon", setting("h.0.ln_1", epsilon=1e-6)),
    gpt("post-norm", "h.0", None, calling("h.0", _post_norm), also=("wrong tensor", "residual")),
    gpt("attention and MLP in parallel", "h.0", "wrong tensor", calling("h.0", _parallel), also=("residual",)),
    gpt("residual from the normed", "h.0", "residual", calling("h.0", _from_normed)),
    gpt(
        "positions not trained", "the model", "gradient cut", calling("", _untrained_positions, "embedded"), "gradient"
    ),
    gpt(
        "head does not train the table",
        "wte",
        None,
        calling("", lambda self, original, x: x @ stop(self.wte.embedding[...]).T, HEAD),
        "gradient",
        also=(
            "gradient cut",
            "untied weights",
        ),
    ),
    gpt("dropout forgotten", "drop", "dropout rate", setting("drop", rate=0.0), "train"),
    gpt("dropout at another rate", "h.0.drop", "dropout rate", setting("h.0.drop", rate=0.2), "train"),
    gpt("dropout not called", "h.0.drop", "dropout rate", calling("h.0", _without_dropout), "train"),
    gpt("weights dropped too", None, "dropout rate", _dropping_weights, "train", also=("random draw",)),
    gpt("dropout once per token", "drop", "dropout draws", setting("drop", broadcast_dims=(2,)), "train"),
)

# ---- Llama ----

SELF, MLP, NORM = "layers.0.self_attn", "layers.0.mlp", "layers.0.input_layernorm"


def _rotating(rotate: Any) -> Apply:
    """Replace the rotation by rotate(q, k, v)."""
    return calling(SELF, lambda self, original, q, k, v: rotate(q, k, v), "rotate")


def _both(rotate: Any) -> Apply:
    """Rotate q and k by rotate(x)."""
    return _rotating(lambda q, k, v: (rotate(q), rotate(k), v))


def _angle(x: jax.Array, theta: float = 10000.0) -> jax.Array:
    return angles(x.shape[2], x.shape[3], theta)


def _interleaved(x: jax.Array) -> jax.Array:
    """Rotate interleaved pairs (2 i, 2 i + 1)."""
    apart = jnp.concatenate((x[..., ::2], x[..., 1::2]), -1)
    a, b = jnp.split(rotated(apart, _angle(x)), 2, axis=-1)
    return jnp.stack((a, b), -1).reshape(x.shape)


def _full_width(x: jax.Array) -> jax.Array:
    """Use frequencies theta^(-i/d) in place of theta^(-2i/d)."""
    frequency = 10000.0 ** (-jnp.arange(x.shape[3] // 2) / x.shape[3])
    return rotated(x, jnp.arange(x.shape[2])[:, None] * frequency[None])


def _late_keys(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
    step = _angle(k)[1:2]
    return rotated(q, _angle(q)), rotated(k, _angle(k) + step), v


def _half_rotated(x: jax.Array) -> jax.Array:
    """Rotate only the first half of the features (a rotary fraction of 0.5)."""
    half = x.shape[-1] // 2
    part = x[..., :half]
    return jnp.concatenate((rotated(part, _angle(part)), x[..., half:]), -1)


def _one_plus(self: Any, original: Any, x: jax.Array) -> jax.Array:
    y = original(x)
    return y / along_channels(self.scale[...], x) * (1 + along_channels(self.scale[...], x))


def _centred(self: Any, original: Any, x: jax.Array) -> jax.Array:
    return original(x - x.mean(-1, keepdims=True))


def _swapped_keys(self: Any, original: Any, x: jax.Array) -> jax.Array:
    q, v, k = self.rotate(
        split_heads(self.q_proj(x), H), split_heads(self.v_proj(x), K), split_heads(self.k_proj(x), K)
    )
    logits = q @ self.shared(k).swapaxes(-1, -2) * self.scale
    return self.o_proj(join_heads(self.weights(logits) @ self.shared(v)))


def _joined_wrongly(self: Any, original: Any, x: jax.Array) -> jax.Array:
    """Merge the heads without first transposing them behind the tokens."""
    q, k, v = self.rotate(
        split_heads(self.q_proj(x), H), split_heads(self.k_proj(x), K), split_heads(self.v_proj(x), K)
    )
    y = self.weights(q @ self.shared(k).swapaxes(-1, -2) * self.scale) @ self.shared(v)
    return self.o_proj(y.reshape(x.shape))


def _without_norm(self: Any, original: Any, x: jax.Array) -> jax.Array:
    x = x + self.self_attn(self.input_layernorm(x))
    self.post_attention_layernorm(x)
    return x + self.mlp(x)


def _as_permuted(kernel: jax.Array) -> jax.Array:
    """Permute the features of every head as in the released checkpoints, for interleaved pairs."""
    return kernel.reshape(D, H, 2, -1).swapaxes(2, 3).reshape(D, D)


def _float32(self: Any, original: Any, logits: jax.Array) -> jax.Array:
    return original(logits.astype(jnp.float32)).astype(logits.dtype)


LLAMA = (
    llama("pairs interleaved", SELF, "rotary embedding", _both(_interleaved)),
    llama("theta of 500000", SELF, "rotary embedding", _both(lambda x: rotated(x, _angle(x, 500000.0)))),
    llama(
        "rotated backwards", SELF, "rotary embedding", _both(lambda x: rotated(x, -_angle(x))), also=("axis flipped",)
    ),
    llama("k not rotated", SELF, "rotary embedding", _rotating(lambda q, k, v: (rotated(q, _angle(q)), k, v))),
    llama("nothing rotated", SELF, "rotary embedding", _rotating(lambda q, k, v: (q, k, v))),
    llama(
        "v rotated too",
        SELF,
        "rotary embedding",
        _rotating(lambda q, k, v: tuple(rotated(x, _angle(x)) for x in (q, k, v))),
    ),
    llama("keys one position late", SELF, None, _rotating(_late_keys), also=("rotary embedding", "position offset")),
    llama("frequencies of twice the width", SELF, None, _both(_full_width), also=("rotary embedding", "scale")),
    llama("half of the features rotated", SELF, None, _both(_half_rotated), also=("rotary embedding",)),
    llama(
        "heads of keys tiled",
        SELF,
        "kv heads",
        calling(SELF, lambda self, original, x: jnp.tile(x, (1, H // K, 1, 1)), "shared"),
    ),
    llama(
        "values for keys",
        SELF,
        "q/k/v order",
        calling(SELF, _swapped_keys),
        also=("wrong tensor", "branches exchanged"),
    ),
    llama("heads not moved back", SELF, None, calling(SELF, _joined_wrongly), also=("axis order", "head order")),
    llama("mask forgotten", SELF, "attention mask", calling(SELF, _unmasked, "weights"), also=("step left out",)),
    llama(
        "mask hides the past",
        SELF,
        "attention mask",
        calling(SELF, _masked_where(lambda n: ~upper(n)), "weights"),
        also=("axis order",),
    ),
    llama(
        "mask of -1",
        SELF,
        None,
        calling(SELF, lambda self, original, x: jax.nn.softmax(x - upper(x.shape[-1], 1), axis=-1), "weights"),
        also=("attention mask",),
    ),
    llama("attention not scaled", SELF, "attention scale", setting(SELF, scale=1.0)),
    llama("scaled by the heads of keys", SELF, "attention scale", setting(SELF, scale=(D // K) ** -0.5)),
    llama("softmax in float32", SELF, "float32 leak", calling(SELF, _float32, "weights")),
    llama(
        "gate and up exchanged",
        MLP,
        "gate and up",
        calling(MLP, lambda self, original, gate, up: original(up, gate), "gated"),
        also=("wrong tensor", "branches exchanged"),
    ),
    llama(
        "GELU gate",
        MLP,
        "activation",
        calling(MLP, lambda self, original, gate, up: jax.nn.gelu(gate, approximate=False) * up, "gated"),
    ),
    llama(
        "gate not activated",
        MLP,
        "step left out",
        calling(MLP, lambda self, original, gate, up: gate * up, "gated"),
        also=("activation",),
    ),
    llama("1 + scale", NORM, "1 + scale", calling(NORM, _one_plus)),
    llama("RMSNorm eps 1e-5", NORM, "epsilon", setting(NORM, epsilon=1e-5)),
    llama("mean taken away", NORM, "norm statistics", calling(NORM, _centred)),
    llama("MLP without its norm", "layers.0", "wrong tensor", calling("layers.0", _without_norm)),
    llama(
        "features of q permuted",
        f"{SELF}.q_proj",
        None,
        changing(f"{SELF}.q_proj.kernel", _as_permuted),
        "conversion",
        also=("axis permuted", "head order"),
    ),
    llama(
        "embedding times the root of the width",
        "embed_tokens",
        "scale",
        calling("embed_tokens", lambda self, original, ids: original(ids) * D**0.5),
    ),
    llama(
        "keys do not train",
        SELF,
        "gradient cut",
        _rotating(lambda q, k, v: (rotated(q, _angle(q)), stop(rotated(k, _angle(k))), v)),
        "gradient",
    ),
    llama(
        "gate does not train",
        MLP,
        "gradient cut",
        calling(MLP, lambda self, original, gate, up: original(stop(gate), up), "gated"),
        "gradient",
    ),
)

DECODER_MISTAKES = (*GPT, *LLAMA)
