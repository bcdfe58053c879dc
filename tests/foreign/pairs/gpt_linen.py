"""GPT with a tied head: PyTorch in the style of nanoGPT; Linen, compact, with query, key and value apart.

Shapes: B sequences, N tokens, D features, H heads, V words.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import torch
import torch.nn.functional as F

from tests.foreign.pairs.common import Bug, ForeignPair, Side, array, dense, integers, norm, randomize

D, H, V, N, DEPTH = 24, 3, 19, 7, 2


class TorchAttention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_attn, self.c_proj = torch.nn.Linear(D, 3 * D), torch.nn.Linear(D, D)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        q, k, v = (part.view(b, n, H, D // H).transpose(1, 2) for part in self.c_attn(x).split(D, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(b, n, D))


class TorchMlp(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_fc, self.gelu, self.c_proj = torch.nn.Linear(D, 4 * D), torch.nn.GELU(), torch.nn.Linear(4 * D, D)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(self.gelu(self.c_fc(x)))


class TorchBlock(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.attn = torch.nn.LayerNorm(D), TorchAttention()
        self.ln_2, self.mlp = torch.nn.LayerNorm(D), TorchMlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class TorchGPT(torch.nn.Module):
    """(B, N) -> (B, N, V)."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = torch.nn.ModuleDict(
            {
                "wte": torch.nn.Embedding(V, D),
                "wpe": torch.nn.Embedding(2 * N, D),
                "h": torch.nn.ModuleList([TorchBlock() for _ in range(DEPTH)]),
                "ln_f": torch.nn.LayerNorm(D),
            }
        )
        self.lm_head = torch.nn.Linear(D, V, bias=False)
        self.transformer["wte"].weight = self.lm_head.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        parts: Any = self.transformer
        x = parts.wte(ids) + parts.wpe(torch.arange(ids.shape[1]))
        for block in parts.h:
            x = block(x)
        return self.lm_head(parts.ln_f(x))


class Attention(nn.Module):
    bug: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        n = x.shape[1]
        q, k, v = (nn.DenseGeneral((H, D // H), name=name)(x) for name in ("query", "key", "value"))
        scale = 1.0 if self.bug == "no_scale" else (D // H) ** -0.5
        causal = jnp.arange(n)[None, :] <= jnp.arange(n)[:, None]
        scores = jnp.where(causal, jnp.einsum("bqhd,bkhd->bhqk", q, k) * scale, -1e30)  # bug: no_scale
        y = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)
        return nn.DenseGeneral(D, axis=(-2, -1), name="out")(y)


class Block(nn.Module):
    bug: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + Attention(self.bug, name="attention")(
            nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name="norm1")(x)
        )
        h = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name="norm2")(x)
        h = nn.Dense(4 * D, name="up")(h)
        h = nn.gelu(h, approximate=self.bug == "tanh_gelu")  # bug: tanh_gelu
        return x + nn.Dense(D, name="down")(h)


class GPT(nn.Module):
    bug: str = ""

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        embed = nn.Embed(V, D, name="tokens")
        places = nn.Embed(2 * N, D, name="positions")
        shift = 1 if self.bug == "positions_from_one" else 0
        x = embed(ids) + places(jnp.arange(ids.shape[1]) + shift)  # bug: positions_from_one
        for i in range(DEPTH):
            x = Block(self.bug if i == 1 else "", name=f"block{i}")(x)
        x = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name="norm")(x)
        return embed.attend(x)


def converted(model: Any) -> dict[str, Any]:
    """The variables of `GPT` from a `TorchGPT`."""
    parts = model.transformer
    params: dict[str, Any] = {
        "tokens": {"embedding": jnp.asarray(array(parts.wte.weight))},
        "positions": {"embedding": jnp.asarray(array(parts.wpe.weight))},
        "norm": norm(parts.ln_f),
    }
    for i, block in enumerate(parts.h):
        kernels = dense(block.attn.c_attn)["kernel"].reshape(D, 3, H, D // H)
        biases = dense(block.attn.c_attn)["bias"].reshape(3, H, D // H)
        out = dense(block.attn.c_proj)
        attention: dict[str, Any] = {
            name: {"kernel": kernels[:, j], "bias": biases[j]} for j, name in enumerate(("query", "key", "value"))
        }
        attention["out"] = {"kernel": out["kernel"].reshape(H, D // H, D), "bias": out["bias"]}
        params[f"block{i}"] = {
            "norm1": norm(block.ln_1),
            "attention": attention,
            "norm2": norm(block.ln_2),
            "up": dense(block.mlp.c_fc),
            "down": dense(block.mlp.c_proj),
        }
    return {"params": params}


PAIR = ForeignPair(
    name="gpt_linen",
    file=__file__,
    torch_model=lambda seed: randomize(TorchGPT(), seed),
    jax_side=lambda model, bug: Side("linen", GPT(bug), converted(model)),
    inputs=lambda seed: (integers(seed, V, 2, N),),
    bugs={
        "no_scale": Bug(("transformer.h.1.attn",)),
        "tanh_gelu": Bug(("transformer.h.1.mlp.gelu",)),
        "positions_from_one": Bug(("transformer.wpe",)),
    },
)
