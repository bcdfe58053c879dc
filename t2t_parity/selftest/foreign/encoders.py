"""Encoders: BERT with padding, and a vision transformer in the style of timm.

Shapes: B sequences, N tokens, D features, H heads, V words.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx

from t2t_parity.selftest.foreign.architecture import Architecture, Inputs, join_heads, normal, split_heads

D, H, V, N = 16, 4, 11, 6
PATCH = 4


# ---- BERT ----


class TorchBertEmbeddings(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = torch.nn.Embedding(V, D, padding_idx=0)
        self.position_embeddings, self.token_type_embeddings = torch.nn.Embedding(N + 3, D), torch.nn.Embedding(2, D)
        self.LayerNorm = torch.nn.LayerNorm(D, eps=1e-12)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.word_embeddings(ids) + self.token_type_embeddings(torch.zeros_like(ids))
        return self.LayerNorm(x + self.position_embeddings(torch.arange(ids.shape[1])))


class TorchBertAttention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = torch.nn.Linear(D, D), torch.nn.Linear(D, D), torch.nn.Linear(D, D)
        self.dense, self.LayerNorm = torch.nn.Linear(D, D), torch.nn.LayerNorm(D, eps=1e-12)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = (p(x).unflatten(2, (H, -1)).transpose(1, 2) for p in (self.query, self.key, self.value))
        scores = q @ k.transpose(2, 3) / (D // H) ** 0.5
        scores = scores + (1 - mask[:, None, None].to(x)) * -10000.0
        y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.LayerNorm(self.dense(y) + x)


class TorchBertLayer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.intermediate = TorchBertAttention(), torch.nn.Linear(D, 2 * D)
        self.output, self.LayerNorm = torch.nn.Linear(2 * D, D), torch.nn.LayerNorm(D, eps=1e-12)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.attention(x, mask)
        return self.LayerNorm(self.output(F.gelu(self.intermediate(x))) + x)


class TorchBert(torch.nn.Module):
    """Post-norm, padding masked, mean over unpadded tokens pooled; ids, mask (B, N) -> (B, N, D), (B, D)."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings, self.pooler = TorchBertEmbeddings(), torch.nn.Linear(D, D)
        self.layer = torch.nn.ModuleList([TorchBertLayer()])

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.embeddings(ids)
        for layer in self.layer:
            x = layer(x, mask)
        kept = mask[..., None].to(x)
        return x, torch.tanh(self.pooler((x * kept).sum(1) / kept.sum(1)))


class PaddedEmbed(nnx.Embed):
    """Embedding whose row 0 is not trained, as with `padding_idx=0`."""

    def table(self) -> jax.Array:
        table = self.embedding[...]
        return table.at[0].set(jax.lax.stop_gradient(table[0]))

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        return jnp.take(self.table(), inputs, axis=0)


class BertEmbeddings(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.word_embeddings = PaddedEmbed(V, D, rngs=rngs)
        self.position_embeddings = nnx.Embed(N + 3, D, rngs=rngs)
        self.token_type_embeddings = nnx.Embed(2, D, rngs=rngs)
        self.LayerNorm = nnx.LayerNorm(D, epsilon=1e-12, use_fast_variance=False, rngs=rngs)

    def positions(self, ids: jax.Array) -> jax.Array:
        return jnp.arange(ids.shape[1])

    def types(self, ids: jax.Array) -> jax.Array:
        return jnp.zeros_like(ids)

    def __call__(self, ids: jax.Array) -> jax.Array:
        x = self.word_embeddings(ids) + self.token_type_embeddings(self.types(ids))
        return self.LayerNorm(x + self.position_embeddings(self.positions(ids))[None])


class BertAttention(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.query, self.key, self.value = (nnx.Linear(D, D, rngs=rngs) for _ in range(3))
        self.dense = nnx.Linear(D, D, rngs=rngs)
        self.LayerNorm = nnx.LayerNorm(D, epsilon=1e-12, use_fast_variance=False, rngs=rngs)
        self.scale = (D // H) ** -0.5

    def weights(self, scores: jax.Array, mask: jax.Array) -> jax.Array:
        """Return attention weights from scores (B, H, N, N) and a mask (B, N) of 0 and 1."""
        return jax.nn.softmax(scores + (1 - mask[:, None, None].astype(scores.dtype)) * -10000.0, axis=-1)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        q, k, v = (split_heads(p(x), H) for p in (self.query, self.key, self.value))
        weights = self.weights(q @ k.swapaxes(-1, -2) * self.scale, mask)
        return self.LayerNorm(self.dense(join_heads(weights @ v)) + x)


class BertLayer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.attention, self.intermediate = BertAttention(rngs), nnx.Linear(D, 2 * D, rngs=rngs)
        self.output = nnx.Linear(2 * D, D, rngs=rngs)
        self.LayerNorm = nnx.LayerNorm(D, epsilon=1e-12, use_fast_variance=False, rngs=rngs)

    def act(self, x: jax.Array) -> jax.Array:
        return jax.nn.gelu(x, approximate=False)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = self.attention(x, mask)
        return self.LayerNorm(self.output(self.act(self.intermediate(x))) + x)


class Bert(nnx.Module):
    """Twin of `TorchBert`."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embeddings, self.pooler = BertEmbeddings(rngs), nnx.Linear(D, D, rngs=rngs)
        self.layer = nnx.List([BertLayer(rngs)])

    def pooled(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        kept = mask[..., None].astype(x.dtype)
        return (x * kept).sum(1) / kept.sum(1)

    def squashed(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(x)

    def __call__(self, ids: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = self.embeddings(ids)
        for layer in self.layer:
            x = layer(x, mask)
        return x, self.squashed(self.pooler(self.pooled(x, mask)))


def _padded(draw: np.random.RandomState) -> Inputs:
    """Draw sentences of 6, 4 and 3 words, padded with word 0."""
    mask = (np.arange(N)[None] < np.array([6, 4, 3])[:, None]).astype(np.int64)
    return draw.randint(1, V, (3, N)) * mask, mask


# ---- vision transformer ----


class TorchViTAttention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = torch.nn.Linear(D, 3 * D), torch.nn.Linear(D, D)
        self.q_norm, self.k_norm = torch.nn.LayerNorm(D // H), torch.nn.LayerNorm(D // H)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, N, _ = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, H, D // H).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(y.transpose(1, 2).reshape(B, N, D))


class TorchViTBlock(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn = torch.nn.LayerNorm(D, eps=1e-6), TorchViTAttention()
        self.gamma = torch.nn.Parameter(torch.ones(D))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.gamma * self.attn(self.norm1(x))


class TorchViT(torch.nn.Module):
    """Class token, QK normalization, LayerScale, mean of the patches; (B, 3, 12, 8) -> (B, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = torch.nn.Conv2d(3, D, PATCH, stride=PATCH)
        self.cls_token, self.pos_embed = (torch.nn.Parameter(torch.zeros(1, n, D)) for n in (1, 7))
        self.blocks = torch.nn.ModuleList([TorchViTBlock()])
        self.fc_norm, self.head = torch.nn.LayerNorm(D, eps=1e-6), torch.nn.Linear(D, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.fc_norm(x[:, 1:].mean(1)))


class ViTAttention(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.qkv, self.proj = nnx.Linear(D, 3 * D, rngs=rngs), nnx.Linear(D, D, rngs=rngs)
        self.q_norm = nnx.LayerNorm(D // H, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.k_norm = nnx.LayerNorm(D // H, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.scale = (D // H) ** -0.5

    def parts(self, x: jax.Array) -> jax.Array:
        """Split (B, N, 3 D) into (3, B, H, N, d)."""
        return x.reshape(*x.shape[:2], 3, H, -1).transpose(2, 0, 3, 1, 4)

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = self.parts(self.qkv(x))
        logits = self.q_norm(q) @ self.k_norm(k).swapaxes(-1, -2) * self.scale
        return self.proj(join_heads(jax.nn.softmax(logits, axis=-1) @ v))


class ViTBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm1 = nnx.LayerNorm(D, epsilon=1e-6, use_fast_variance=False, rngs=rngs)
        self.attn, self.gamma = ViTAttention(rngs), nnx.Param(jnp.ones(D))

    def scaled(self, x: jax.Array) -> jax.Array:
        return x * self.gamma[...][None, None]

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.scaled(self.attn(self.norm1(x)))


class ViT(nnx.Module):
    """Twin of `TorchViT`; the input is (B, 12, 8, 3)."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.patch_embed = nnx.Conv(3, D, (PATCH, PATCH), strides=PATCH, padding="VALID", rngs=rngs)
        self.cls_token, self.pos_embed = nnx.Param(jnp.zeros((1, 1, D))), nnx.Param(jnp.zeros((1, 7, D)))
        self.blocks = nnx.List([ViTBlock(rngs)])
        self.fc_norm = nnx.LayerNorm(D, epsilon=1e-6, use_fast_variance=False, rngs=rngs)
        self.head = nnx.Linear(D, 5, rngs=rngs)

    def as_tokens(self, x: jax.Array) -> jax.Array:
        """Flatten (B, h, w, D) to (B, h w, D), row by row."""
        return x.reshape(x.shape[0], -1, x.shape[-1])

    def with_class(self, x: jax.Array) -> jax.Array:
        token = jnp.broadcast_to(self.cls_token[...], (x.shape[0], 1, D))
        return jnp.concatenate((token, x), axis=1) + self.pos_embed[...]

    def pooled(self, x: jax.Array) -> jax.Array:
        return x[:, 1:].mean(1)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.with_class(self.as_tokens(self.patch_embed(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(self.fc_norm(self.pooled(x)))


ENCODERS = {
    "bert": Architecture(TorchBert, Bert, _padded),
    "timm": Architecture(TorchViT, ViT, normal(2, 3, 12, 8)),
}
