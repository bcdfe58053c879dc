"""Causal language models: GPT with a tied head, and Llama.

Shapes: B sequences, N tokens, D features, H heads, K heads of keys and values, d features per head, V words.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx

from parity.carry.rules import Rules
from t2t_parity.selftest.foreign.architecture import Architecture, join_heads, split_heads, upper

D, H, K, V, N = 16, 4, 2, 11, 5
THETA = 10000.0


def _tokens(draw: np.random.RandomState) -> np.ndarray:
    return draw.randint(0, V, (2, N))


# ---- GPT ----


class TorchGPTAttention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_attn, self.c_proj = torch.nn.Linear(D, 3 * D), torch.nn.Linear(D, D)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.c_attn(x).split(D, dim=2)
        q, k, v = (part.unflatten(2, (H, -1)).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).flatten(2))


class TorchGPTMlp(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_fc, self.c_proj = torch.nn.Linear(D, 2 * D), torch.nn.Linear(2 * D, D)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class TorchGPTBlock(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = torch.nn.LayerNorm(D), torch.nn.LayerNorm(D)
        self.attn, self.mlp = TorchGPTAttention(), TorchGPTMlp()
        self.drop = torch.nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.drop(self.mlp(self.ln_2(x)))


class TorchGPT(torch.nn.Module):
    """Learned positions, pre-norm, tanh GELU, head tied to the word embedding; (B, N) -> (B, N, V)."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = torch.nn.Embedding(V, D), torch.nn.Embedding(N + 3, D)
        self.drop = torch.nn.Dropout(0.1)
        self.h = torch.nn.ModuleList([TorchGPTBlock()])
        self.ln_f = torch.nn.LayerNorm(D)
        self.lm_head = torch.nn.Linear(D, V, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.drop(self.wte(ids) + self.wpe(torch.arange(ids.shape[1])))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class GPTAttention(nnx.Module):
    """Twin of `TorchGPTAttention`, written out."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.c_attn, self.c_proj = nnx.Linear(D, 3 * D, rngs=rngs), nnx.Linear(D, D, rngs=rngs)
        self.scale = (D // H) ** -0.5

    def parts(self, x: jax.Array) -> list[jax.Array]:
        """Split (B, N, 3 D) into q, k, v, each (B, H, N, d)."""
        return [split_heads(part, H) for part in jnp.split(x, 3, axis=-1)]

    def weights(self, logits: jax.Array) -> jax.Array:
        return jax.nn.softmax(jnp.where(upper(logits.shape[-1], 1), -jnp.inf, logits), axis=-1)

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = self.parts(self.c_attn(x))
        return self.c_proj(join_heads(self.weights(q @ k.swapaxes(-1, -2) * self.scale) @ v))


class GPTMlp(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.c_fc, self.c_proj = nnx.Linear(D, 2 * D, rngs=rngs), nnx.Linear(2 * D, D, rngs=rngs)

    def act(self, x: jax.Array) -> jax.Array:
        return jax.nn.gelu(x, approximate=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.c_proj(self.act(self.c_fc(x)))


class GPTBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.ln_1 = nnx.LayerNorm(D, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.ln_2 = nnx.LayerNorm(D, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.attn, self.mlp = GPTAttention(rngs), GPTMlp(rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attn(self.ln_1(x))
        return x + self.drop(self.mlp(self.ln_2(x)))


class GPT(nnx.Module):
    """Twin of `TorchGPT`; the head is the embedding table itself."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.wte, self.wpe = nnx.Embed(V, D, rngs=rngs), nnx.Embed(N + 3, D, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)
        self.h = nnx.List([GPTBlock(rngs)])
        self.ln_f = nnx.LayerNorm(D, epsilon=1e-5, use_fast_variance=False, rngs=rngs)

    def embedded(self, ids: jax.Array) -> jax.Array:
        return self.wte(ids) + self.wpe(jnp.arange(ids.shape[1]))[None]

    def head(self, x: jax.Array) -> jax.Array:
        return x @ self.wte.embedding[...].T

    def __call__(self, ids: jax.Array) -> jax.Array:
        x = self.drop(self.embedded(ids))
        for block in self.h:
            x = block(x)
        return self.head(self.ln_f(x))


# ---- Llama ----


def _torch_rotated(x: torch.Tensor) -> torch.Tensor:
    """Rotate the pairs (i, i + d/2) of (B, heads, N, d) by n THETA^(-2i/d)."""
    half = x.shape[-1] // 2
    frequency = THETA ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.outer(torch.arange(x.shape[2], dtype=torch.float64), frequency)
    cos, sin = (torch.cat((f(angle), f(angle)), -1).to(x) for f in (torch.cos, torch.sin))
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


class TorchLlamaAttention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width = D // H * K
        self.q_proj, self.k_proj = torch.nn.Linear(D, D, bias=False), torch.nn.Linear(D, width, bias=False)
        self.v_proj, self.o_proj = torch.nn.Linear(D, width, bias=False), torch.nn.Linear(D, D, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.q_proj(x).unflatten(2, (H, -1)).transpose(1, 2)
        k, v = (proj(x).unflatten(2, (K, -1)).transpose(1, 2) for proj in (self.k_proj, self.v_proj))
        q, k = _torch_rotated(q), _torch_rotated(k)
        k, v = (part.repeat_interleave(H // K, dim=1) for part in (k, v))
        scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, float("-inf")).softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).flatten(2))


class TorchLlamaMlp(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = torch.nn.Linear(D, 2 * D, bias=False), torch.nn.Linear(D, 2 * D, bias=False)
        self.down_proj = torch.nn.Linear(2 * D, D, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class TorchLlamaBlock(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm = torch.nn.RMSNorm(D, eps=1e-6)
        self.post_attention_layernorm = torch.nn.RMSNorm(D, eps=1e-6)
        self.self_attn, self.mlp = TorchLlamaAttention(), TorchLlamaMlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class TorchLlama(torch.nn.Module):
    """Rotary positions, RMSNorm, SwiGLU, K key and value heads for H query heads; (B, N) -> (B, N, V)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens, self.norm = torch.nn.Embedding(V, D), torch.nn.RMSNorm(D, eps=1e-6)
        self.layers = torch.nn.ModuleList([TorchLlamaBlock()])
        self.lm_head = torch.nn.Linear(D, V, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


def angles(length: int, width: int, theta: float = THETA) -> jax.Array:
    """Return the angle n theta^(-2i/d) of each position and pair, (N, d/2)."""
    frequency = theta ** (-jnp.arange(0, width, 2) / width)
    return jnp.arange(length)[:, None] * frequency[None]


def rotated(x: jax.Array, angle: jax.Array) -> jax.Array:
    """Rotate the pairs (i, i + d/2) of (B, heads, N, d) by `angle` (N, d/2)."""
    a, b = jnp.split(x, 2, axis=-1)
    cos, sin = jnp.cos(angle)[None, None], jnp.sin(angle)[None, None]
    return jnp.concatenate((a * cos - b * sin, b * cos + a * sin), axis=-1)


class LlamaAttention(nnx.Module):
    """Twin of `TorchLlamaAttention`."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        def linear(out: int) -> nnx.Linear:
            return nnx.Linear(D, out, use_bias=False, rngs=rngs)

        self.q_proj, self.k_proj, self.v_proj, self.o_proj = linear(D), linear(D // 2), linear(D // 2), linear(D)
        self.scale = (D // H) ** -0.5

    def rotate(self, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        angle = angles(q.shape[2], q.shape[3])
        return rotated(q, angle), rotated(k, angle), v

    def shared(self, x: jax.Array) -> jax.Array:
        """Repeat (B, K, N, d) to (B, H, N, d): H / K consecutive heads share one."""
        return jnp.repeat(x, H // K, axis=1)

    def weights(self, logits: jax.Array) -> jax.Array:
        return jax.nn.softmax(jnp.where(upper(logits.shape[-1], 1), -jnp.inf, logits), axis=-1)

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = self.rotate(
            split_heads(self.q_proj(x), H), split_heads(self.k_proj(x), K), split_heads(self.v_proj(x), K)
        )
        logits = q @ self.shared(k).swapaxes(-1, -2) * self.scale
        return self.o_proj(join_heads(self.weights(logits) @ self.shared(v)))


class LlamaMlp(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.gate_proj = nnx.Linear(D, 2 * D, use_bias=False, rngs=rngs)
        self.up_proj = nnx.Linear(D, 2 * D, use_bias=False, rngs=rngs)
        self.down_proj = nnx.Linear(2 * D, D, use_bias=False, rngs=rngs)

    def gated(self, gate: jax.Array, up: jax.Array) -> jax.Array:
        return jax.nn.silu(gate) * up

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down_proj(self.gated(self.gate_proj(x), self.up_proj(x)))


class LlamaBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.input_layernorm = nnx.RMSNorm(D, epsilon=1e-6, rngs=rngs)
        self.post_attention_layernorm = nnx.RMSNorm(D, epsilon=1e-6, rngs=rngs)
        self.self_attn, self.mlp = LlamaAttention(rngs), LlamaMlp(rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nnx.Module):
    """Twin of `TorchLlama`."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed_tokens, self.norm = nnx.Embed(V, D, rngs=rngs), nnx.RMSNorm(D, epsilon=1e-6, rngs=rngs)
        self.layers = nnx.List([LlamaBlock(rngs)])
        self.lm_head = nnx.Linear(D, V, use_bias=False, rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


DECODERS = {
    "gpt": Architecture(
        TorchGPT, GPT, _tokens, Rules(torch_only=("lm_head.weight",), unpaired=("lm_head",)), trains=True
    ),
    "llama": Architecture(TorchLlama, Llama, _tokens),
}
