"""Llama: PyTorch as in transformers; JAX as functions over a pytree, the layers stacked and run by `lax.scan`.

Shapes: B sequences, N tokens, D features, H heads, K heads of keys and values, d features per head, V words.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import torch
import torch.nn.functional as F

from tests.foreign.pairs.common import Bug, ForeignPair, Side, array, integers, randomize

D, H, K, F_, V, N, DEPTH = 24, 6, 2, 40, 19, 7, 2
HEAD = D // H
THETA, EPS = 10000.0, 1e-5


class LlamaRMSNorm(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(D))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS))


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((-x2, x1), dim=-1)


class LlamaRotaryEmbedding(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        frequencies = THETA ** (-torch.arange(0, HEAD, 2, dtype=x.dtype) / HEAD)
        angles = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()


class LlamaAttention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.o_proj = torch.nn.Linear(D, D, bias=False), torch.nn.Linear(D, D, bias=False)
        self.k_proj, self.v_proj = (torch.nn.Linear(D, K * HEAD, bias=False) for _ in range(2))

    def forward(self, x: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        q, k, v = (p(x).unflatten(-1, (-1, HEAD)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        cos, sin = tables
        q, k = (z * cos + rotate_half(z) * sin for z in (q, k))
        k, v = (z.repeat_interleave(H // K, dim=1) for z in (k, v))
        scores = q @ k.transpose(2, 3) * HEAD**-0.5
        mask = torch.full(scores.shape[-2:], torch.finfo(x.dtype).min, dtype=x.dtype).triu(1)
        y = F.softmax(scores + mask, dim=-1) @ v
        return self.o_proj(y.transpose(1, 2).flatten(2))


class LlamaMLP(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = torch.nn.Linear(D, F_, bias=False), torch.nn.Linear(D, F_, bias=False)
        self.down_proj, self.act_fn = torch.nn.Linear(F_, D, bias=False), torch.nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class LlamaDecoderLayer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = LlamaAttention(), LlamaMLP()
        self.input_layernorm, self.post_attention_layernorm = LlamaRMSNorm(), LlamaRMSNorm()

    def forward(self, x: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), tables)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(torch.nn.Module):
    """(B, N) -> (B, N, V)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens, self.rotary_emb = torch.nn.Embedding(V, D), LlamaRotaryEmbedding()
        self.layers = torch.nn.ModuleList([LlamaDecoderLayer() for _ in range(DEPTH)])
        self.norm, self.lm_head = LlamaRMSNorm(), torch.nn.Linear(D, V, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(ids)
        tables = self.rotary_emb(x)
        for layer in self.layers:
            x = layer(x, tables)
        return self.lm_head(self.norm(x))


def rms_norm(x: jax.Array, scale: jax.Array, eps: float = EPS) -> jax.Array:
    return x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + eps) * scale


def rope(x: jax.Array, bug: str) -> jax.Array:
    """Rotate (B, N, heads, d)."""
    angles = jnp.arange(x.shape[1])[:, None] / THETA ** (jnp.arange(0, HEAD, 2) / HEAD)
    cos, sin = jnp.cos(angles)[:, None, :], jnp.sin(angles)[:, None, :]
    a, b = (x[..., ::2], x[..., 1::2]) if bug == "rope_pairs" else jnp.split(x, 2, axis=-1)  # bug: rope_pairs
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def for_every_head(x: jax.Array, bug: str) -> jax.Array:
    """(B, N, K, d) -> (B, N, H, d)."""
    return x[:, :, jnp.arange(H) % K if bug == "kv_heads" else jnp.arange(H) // (H // K)]  # bug: kv_heads


def attention(p: dict[str, jax.Array], x: jax.Array, bug: str) -> jax.Array:
    b, n, _ = x.shape
    q = rope((x @ p["q"]).reshape(b, n, H, HEAD), bug)
    k = rope((x @ p["k"]).reshape(b, n, K, HEAD), bug)
    v = (x @ p["v"]).reshape(b, n, K, HEAD)
    scores = jnp.einsum("bqhd,bshd->bhqs", q, for_every_head(k, bug)) / jnp.sqrt(HEAD)
    scores = jnp.where(jnp.tril(jnp.ones((n, n), bool)), scores, -jnp.inf)
    y = jnp.einsum("bhqs,bshd->bqhd", jax.nn.softmax(scores), for_every_head(v, bug))
    return y.reshape(b, n, D) @ p["o"]


def swiglu(p: dict[str, jax.Array], x: jax.Array, bug: str) -> jax.Array:
    gate, up = jnp.split(x @ p["gate_up"], 2, axis=-1)
    hidden = jax.nn.silu(up) * gate if bug == "gate_and_up" else jax.nn.silu(gate) * up  # bug: gate_and_up
    return hidden @ p["down"]


def llama(params: dict[str, Any], ids: jax.Array, *, bug: str = "") -> jax.Array:
    def layer(x: jax.Array, p: dict[str, jax.Array]) -> tuple[jax.Array, None]:
        x = x + attention(p, rms_norm(x, p["norm1"]), bug)
        return x + swiglu(p, rms_norm(x, p["norm2"]), bug), None

    x, _ = jax.lax.scan(layer, params["embed"][ids], params["layers"])
    return rms_norm(x, params["norm"]) @ params["head"]


def converted(model: Any) -> dict[str, Any]:
    def stacked(leaf: Any) -> jax.Array:
        return jnp.stack([jnp.asarray(leaf(layer)) for layer in model.layers])

    return {
        "embed": jnp.asarray(array(model.embed_tokens.weight)),
        "layers": {
            "norm1": stacked(lambda layer: array(layer.input_layernorm.weight)),
            "q": stacked(lambda layer: array(layer.self_attn.q_proj.weight).T),
            "k": stacked(lambda layer: array(layer.self_attn.k_proj.weight).T),
            "v": stacked(lambda layer: array(layer.self_attn.v_proj.weight).T),
            "o": stacked(lambda layer: array(layer.self_attn.o_proj.weight).T),
            "norm2": stacked(lambda layer: array(layer.post_attention_layernorm.weight)),
            "gate_up": stacked(
                lambda layer: jnp.concatenate([array(layer.mlp.gate_proj.weight), array(layer.mlp.up_proj.weight)]).T
            ),
            "down": stacked(lambda layer: array(layer.mlp.down_proj.weight).T),
        },
        "norm": jnp.asarray(array(model.norm.weight)),
        "head": jnp.asarray(array(model.lm_head.weight).T),
    }


PAIR = ForeignPair(
    name="llama_function",
    file=__file__,
    torch_model=lambda seed: randomize(Llama(), seed),
    jax_side=lambda model, bug: Side("function", functools.partial(llama, bug=bug), converted(model)),
    inputs=lambda seed: (integers(seed, V, 2, N),),
    bugs={
        "rope_pairs": Bug(("layers.0.self_attn",)),
        "kv_heads": Bug(("layers.0.self_attn",)),
        "gate_and_up": Bug(("layers.0.mlp.act_fn", "layers.0.mlp")),
    },
)
