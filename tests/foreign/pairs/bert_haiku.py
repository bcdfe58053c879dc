"""BERT with a padding mask: PyTorch as in transformers; Haiku with modules of its own names.

Shapes: B sequences, N tokens, D features, H heads, V words.
"""

from __future__ import annotations

from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import torch

from tests.foreign.pairs.common import Bug, ForeignPair, Side, array, integers, randomize

D, H, V, N, DEPTH = 24, 4, 23, 9, 2
EPS = 1e-12


class BertEmbeddings(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings, self.position_embeddings = torch.nn.Embedding(V, D), torch.nn.Embedding(2 * N, D)
        self.token_type_embeddings, self.LayerNorm = torch.nn.Embedding(2, D), torch.nn.LayerNorm(D, eps=EPS)

    def forward(self, ids: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        x = self.word_embeddings(ids) + self.token_type_embeddings(types)
        return self.LayerNorm(x + self.position_embeddings(torch.arange(ids.shape[1])))


class BertSelfAttention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = torch.nn.Linear(D, D), torch.nn.Linear(D, D), torch.nn.Linear(D, D)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        q, k, v = (p(x).unflatten(-1, (H, -1)).transpose(1, 2) for p in (self.query, self.key, self.value))
        scores = q @ k.transpose(-1, -2) / (D // H) ** 0.5 + bias
        return (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)


class BertOutput(torch.nn.Module):
    """Projection, residual, LayerNorm."""

    def __init__(self, inside: int) -> None:
        super().__init__()
        self.dense, self.LayerNorm = torch.nn.Linear(inside, D), torch.nn.LayerNorm(D, eps=EPS)
        self.dropout = torch.nn.Dropout(0.1)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class BertAttention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self, self.output = BertSelfAttention(), BertOutput(D)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return self.output(self.self(x, bias), x)


class BertIntermediate(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense, self.intermediate_act_fn = torch.nn.Linear(D, 3 * D), torch.nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.intermediate_act_fn(self.dense(x))


class BertLayer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.intermediate, self.output = BertAttention(), BertIntermediate(), BertOutput(3 * D)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        x = self.attention(x, bias)
        return self.output(self.intermediate(x), x)


class BertEncoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.ModuleList([BertLayer() for _ in range(DEPTH)])

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        for layer in self.layer:
            x = layer(x, bias)
        return x


class BertPooler(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense, self.activation = torch.nn.Linear(D, D), torch.nn.Tanh()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.dense(x[:, 0]))


class TorchBert(torch.nn.Module):
    """Tokens, mask and segments (B, N) -> last_hidden_state (B, N, D), pooler_output (B, D)."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings, self.encoder, self.pooler = BertEmbeddings(), BertEncoder(), BertPooler()

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        x = self.embeddings(input_ids, token_type_ids)
        bias = (1 - attention_mask[:, None, None, :].to(x.dtype)) * -10000.0
        x = self.encoder(x, bias)
        return {"last_hidden_state": x, "pooler_output": self.pooler(x)}


def layer_norm(name: str) -> hk.LayerNorm:
    return hk.LayerNorm(axis=-1, create_scale=True, create_offset=True, eps=EPS, name=name)


class MaskedAttention(hk.Module):
    def __init__(self, bug: str, name: str) -> None:
        super().__init__(name)
        self.bug = bug

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        b, n, _ = x.shape
        q, k, v = (hk.Linear(D, name=name)(x).reshape(b, n, H, D // H) for name in ("q", "k", "v"))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q / jnp.sqrt(D // H), k)
        hidden = 1 - jnp.expand_dims(mask, (1, 3) if self.bug == "mask_of_queries" else (1, 2))
        scores = scores + hidden * -10000.0  # bug: mask_of_queries
        axis = 2 if self.bug == "softmax_over_queries" else 3
        weights = jax.nn.softmax(scores, axis)  # bug: softmax_over_queries
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(b, n, D)


class Layer(hk.Module):
    def __init__(self, bug: str, name: str) -> None:
        super().__init__(name)
        self.bug = bug

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        y = MaskedAttention(self.bug, name="attention")(x, mask)
        x = layer_norm("norm_1")(x + hk.Linear(D, name="out")(y))
        h = hk.Linear(3 * D, name="up")(x)
        h = jax.nn.gelu(h, approximate=self.bug == "tanh_gelu")  # bug: tanh_gelu
        return layer_norm("norm_2")(x + hk.Linear(D, name="down")(h))


class Bert(hk.Module):
    def __init__(self, bug: str = "", name: str = "bert") -> None:
        super().__init__(name)
        self.bug = bug

    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array, token_type_ids: jax.Array) -> dict[str, Any]:
        places = hk.get_parameter("places", (2 * N, D), init=jnp.zeros)
        x = hk.Embed(V, D, name="words")(input_ids) + places[None, : input_ids.shape[1]]
        x = layer_norm("norm_0")(x + hk.Embed(2, D, name="segments")(token_type_ids))
        for i in range(DEPTH):
            x = Layer(self.bug if i == 1 else "", name=f"layer_{i}")(x, attention_mask)
        return {"last_hidden_state": x, "pooler_output": jnp.tanh(hk.Linear(D, name="pool")(x[:, 0]))}


def converted(model: Any) -> dict[str, Any]:
    def linear(layer: Any) -> dict[str, jax.Array]:
        return {"w": jnp.asarray(array(layer.weight).T), "b": jnp.asarray(array(layer.bias))}

    def norm(layer: Any) -> dict[str, jax.Array]:
        return {"scale": jnp.asarray(array(layer.weight)), "offset": jnp.asarray(array(layer.bias))}

    embeddings = model.embeddings
    params = {
        "bert": {"places": jnp.asarray(array(embeddings.position_embeddings.weight))},
        "bert/words": {"embeddings": jnp.asarray(array(embeddings.word_embeddings.weight))},
        "bert/segments": {"embeddings": jnp.asarray(array(embeddings.token_type_embeddings.weight))},
        "bert/norm_0": norm(embeddings.LayerNorm),
        "bert/pool": linear(model.pooler.dense),
    }
    for i, layer in enumerate(model.encoder.layer):
        attention = layer.attention
        params |= {
            f"bert/layer_{i}/attention/q": linear(attention.self.query),
            f"bert/layer_{i}/attention/k": linear(attention.self.key),
            f"bert/layer_{i}/attention/v": linear(attention.self.value),
            f"bert/layer_{i}/out": linear(attention.output.dense),
            f"bert/layer_{i}/norm_1": norm(attention.output.LayerNorm),
            f"bert/layer_{i}/up": linear(layer.intermediate.dense),
            f"bert/layer_{i}/down": linear(layer.output.dense),
            f"bert/layer_{i}/norm_2": norm(layer.output.LayerNorm),
        }
    return params


def transformed(bug: str) -> Any:
    return hk.transform(lambda **inputs: Bert(bug)(**inputs))


def inputs(seed: int) -> dict[str, np.ndarray]:
    mask = (np.arange(N) < np.array([N, N - 3, N - 5])[:, None]).astype(np.int64)
    return {
        "input_ids": integers(seed, V, 3, N),
        "attention_mask": mask,
        "token_type_ids": integers(seed + 1, 2, 3, N),
    }


PAIR = ForeignPair(
    name="bert_haiku",
    file=__file__,
    torch_model=lambda seed: randomize(TorchBert(), seed),
    jax_side=lambda model, bug: Side("haiku", transformed(bug), converted(model)),
    inputs=inputs,
    bugs={
        "mask_of_queries": Bug(("encoder.layer.1.attention.self",)),
        "softmax_over_queries": Bug(("encoder.layer.1.attention.self",)),
        "tanh_gelu": Bug(("encoder.layer.1.intermediate.intermediate_act_fn",)),
    },
)
