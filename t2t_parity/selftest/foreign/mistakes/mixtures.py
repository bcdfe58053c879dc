"""Mistakes in the mixture of experts, autoencoder, dueling head and policy: routing, output names, masks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t2t_parity.selftest.foreign.mixtures import D, E, sinusoid
from t2t_parity.selftest.mutation import Apply, calling, changing, exchanged, mistakes_in

stop = jax.lax.stop_gradient
switch, vae = mistakes_in("switch"), mistakes_in("vae")
dueling, policy = mistakes_in("dueling"), mistakes_in("policy")

# ---- mixture of experts ----

MOE = "moe"


def _best(count: int, sign: float = 1.0, normed: bool = True) -> Any:
    """Gates of the top `count` experts; of the lowest with sign -1."""

    def gates(self: Any, original: Any, probability: jax.Array) -> jax.Array:
        _, chosen = jax.lax.top_k(sign * probability, count)
        kept = probability * jax.nn.one_hot(chosen, E, dtype=probability.dtype).sum(-2)
        return kept / kept.sum(-1, keepdims=True) if normed else kept

    return gates


def _equal(self: Any, original: Any, probability: jax.Array) -> jax.Array:
    return (original(probability) > 0).astype(probability.dtype) / 2


def _exchanged_gates(self: Any, original: Any, probability: jax.Array) -> jax.Array:
    """Exchange the weights of the two best experts."""
    gate = original(probability)
    return jnp.where(gate > 0, 1 - gate, 0)


def _gate_inside(self: Any, original: Any, x: jax.Array, gate: jax.Array) -> jax.Array:
    """Weight the hidden features of the experts before the activation, not their outputs; those not chosen give 0."""
    inner = self.act(jnp.einsum("bnd,edh->bneh", x, self.w1[...]) * gate[..., None])
    return jnp.einsum("bneh,ehd->bned", inner, self.w2[...]).sum(2)


def _float32_router(self: Any, original: Any, logits: jax.Array) -> jax.Array:
    return original(logits.astype(jnp.float32)).astype(logits.dtype)


def _table(make: Any) -> Apply:
    return calling("", lambda self, original, length: make(length), "positions")


def _halves(length: int) -> np.ndarray:
    table = sinusoid(length, D)
    return np.concatenate((table[..., ::2], table[..., 1::2]), -1)


def _cosines_first(length: int) -> np.ndarray:
    table = sinusoid(length, D)
    return np.stack((table[..., 1::2], table[..., ::2]), -1).reshape(table.shape)


SWITCH = (
    switch(
        "weights not made to sum to 1",
        MOE,
        "renormalisation",
        calling(MOE, _best(2, normed=False), "gates"),
        also=(
            "top-k",
            "step left out",
        ),
    ),
    switch("best expert alone", MOE, None, calling(MOE, _best(1), "gates"), also=("top-k", "routing")),
    switch("three experts", MOE, None, calling(MOE, _best(3), "gates"), also=("top-k", "routing")),
    switch(
        "all experts",
        MOE,
        None,
        calling(MOE, _best(E), "gates"),
        also=("top-k", "routing", "wrong tensor", "step left out"),
    ),
    switch("worst experts", MOE, None, calling(MOE, _best(2, -1.0), "gates"), also=("top-k", "routing")),
    switch("experts weighted alike", MOE, None, calling(MOE, _equal, "gates"), also=("top-k", "routing")),
    switch(
        "weights of the two exchanged",
        MOE,
        None,
        calling(MOE, _exchanged_gates, "gates"),
        also=(
            "top-k",
            "routing",
            "axis flipped",
            "shifted by one",
        ),
    ),
    switch("weight on what an expert is given", MOE, None, calling(MOE, _gate_inside, "mixed")),
    switch(
        "sigmoid router", MOE, "activation", calling(MOE, lambda self, original, x: jax.nn.sigmoid(x), "probability")
    ),
    switch(
        "softmax over the tokens",
        MOE,
        "softmax axis",
        calling(MOE, lambda self, original, x: jax.nn.softmax(x, axis=1), "probability"),
    ),
    switch("router in float32", MOE, "float32 leak", calling(MOE, _float32_router, "probability")),
    switch(
        "GELU by tanh",
        MOE,
        "gelu form",
        calling(MOE, lambda self, original, x: jax.nn.gelu(x, approximate=True), "act"),
    ),
    switch(
        "balance not times the experts",
        MOE,
        None,
        calling(MOE, lambda self, original, gate, p: original(gate, p) / E, "balance"),
        also=("scale", "step left out"),
    ),
    switch(
        "experts in another order",
        MOE,
        None,
        changing("moe.w1", lambda x: jnp.roll(x, 1, 0)),
        "conversion",
        also=("shifted by one", "axis permuted", "parts order"),
    ),
    switch(
        "sines of a shorter period",
        "the model",
        "sinusoid",
        _table(lambda n: sinusoid(n, D, 1000.0)),
        also=("position offset",),
    ),
    switch("sines in front of the cosines", "the model", "sinusoid", _table(_halves), also=("position offset",)),
    switch("cosines first", "the model", "sinusoid", _table(_cosines_first), also=("position offset",)),
    switch(
        "sines from position 1",
        "the model",
        "sinusoid",
        _table(lambda n: sinusoid(n + 1, D)[:, 1:]),
        also=("position offset",),
    ),
    switch(
        "router does not train",
        MOE,
        "gradient cut",
        calling(MOE, lambda self, original, x, gate: original(x, stop(gate)), "mixed"),
        "gradient",
    ),
    switch(
        "balance does not train the router",
        MOE,
        "gradient cut",
        calling(MOE, lambda self, original, gate, p: stop(original(gate, p)), "balance"),
        "gradient",
    ),
)

# ---- variational autoencoder ----


def _named(change: Any) -> Apply:
    """Replace the outputs by change(y, mean, log_variance)."""
    return calling("", lambda self, original, y, mean, log_variance: change(y, mean, log_variance), "outputs")


def _posterior(y: Any, mean: Any, log_variance: Any) -> Any:
    return {"reconstruction": y, "posterior": {"mean": mean, "log_variance": log_variance}}


VAE = (
    vae(
        "mean and log variance exchanged",
        "the model",
        None,
        _named(lambda y, m, v: _posterior(y, v, m)),
        also=("wrong tensor", "output order", "structure"),
    ),
    vae(
        "log variance under another name",
        "the model",
        None,
        _named(lambda y, m, v: {"reconstruction": y, "posterior": {"mean": m, "logvar": v}}),
        also=("structure",),
    ),
    vae(
        "posterior not nested",
        "the model",
        None,
        _named(lambda y, m, v: {"reconstruction": y, "mean": m, "log_variance": v}),
        also=("structure",),
    ),
    vae(
        "posterior as a pair",
        "the model",
        None,
        _named(lambda y, m, v: {"reconstruction": y, "posterior": (m, v)}),
        also=("structure",),
    ),
    vae(
        "log variance left out",
        "the model",
        None,
        _named(lambda y, m, v: {"reconstruction": y, "posterior": {"mean": m, "log_variance": None}}),
        also=("structure",),
    ),
    vae("variance for its logarithm", "the model", "extra step", _named(lambda y, m, v: _posterior(y, m, jnp.exp(v)))),
    vae(
        "deviation for the log variance",
        "the model",
        None,
        _named(lambda y, m, v: _posterior(y, m, v / 2)),
        also=("scale",),
    ),
    vae(
        "image transposed",
        "the model",
        None,
        _named(lambda y, m, v: _posterior(y.swapaxes(2, 3), m, v)),
        also=("axis order", "layout", "structure"),
    ),
    vae(
        "flattened with the channels last",
        "the model",
        None,
        calling("", lambda self, original, x: x.reshape(x.shape[0], -1), "flat"),
        also=("axis order", "flatten order"),
    ),
    vae(
        "unflattened with the channels last",
        "the model",
        None,
        calling("", lambda self, original, x: x.reshape(-1, 4, 6, D // 4), "unflat"),
        also=("axis order", "flatten order"),
    ),
    vae(
        "sigmoid missing",
        "the model",
        "step left out",
        calling("", lambda self, original, x: x, "squashed"),
        also=("activation",),
    ),
    vae("tanh for sigmoid", "the model", "activation", calling("", lambda self, original, x: jnp.tanh(x), "squashed")),
    vae(
        "log variance not cut off",
        "the model",
        "step left out",
        calling("", lambda self, original, x: x, "clamped"),
        also=("activation", "clamp"),
    ),
    vae(
        "deviation added to the mean",
        "the model",
        None,
        calling("", lambda self, original, m, v: m + jnp.exp(v / 2), "latent"),
        also=("residual",),
    ),
    vae(
        "heads of the posterior exchanged", "mean", None, exchanged("mean.kernel", "log_variance.kernel"), "conversion"
    ),
    vae(
        "posterior does not train by the image",
        "the model",
        "gradient cut",
        calling("", lambda self, original, m, v: stop(m), "latent"),
        "gradient",
    ),
    vae(
        "log variance does not train",
        "the model",
        "gradient cut",
        _named(lambda y, m, v: _posterior(y, m, stop(v))),
        "gradient",
    ),
)

# ---- dueling head ----


DUELING = (
    dueling(
        "mean of the batch",
        "the model",
        "mean axis",
        calling("", lambda self, original, a: a.mean(0, keepdims=True), "centre"),
        also=("pooling",),
    ),
    dueling(
        "largest advantage for the mean",
        "the model",
        "pooling",
        calling("", lambda self, original, a: a.max(1, keepdims=True), "centre"),
    ),
    dueling(
        "mean not taken away",
        "the model",
        "residual",
        calling("", lambda self, original, value, a: value + a, "joined"),
    ),
    dueling(
        "value left out",
        "the model",
        "residual",
        calling("", lambda self, original, value, a: a - self.centre(a), "joined"),
    ),
    dueling(
        "ReLU for leaky ReLU", "the model", "activation", calling("", lambda self, original, x: jax.nn.relu(x), "act")
    ),
    dueling(
        "slope of 0.2",
        "the model",
        "activation",
        calling("", lambda self, original, x: jax.nn.leaky_relu(x, 0.2), "act"),
    ),
    dueling(
        "value does not train",
        "the model",
        "gradient cut",
        calling("", lambda self, original, value, a: original(stop(value), a), "joined"),
        "gradient",
    ),
    dueling(
        "mean does not train",
        "the model",
        None,
        calling("", lambda self, original, a: stop(original(a)), "centre"),
        "gradient",
        also=("gradient cut",),
    ),
)

# ---- policy ----


def _short_prior(self: Any, original: Any) -> jax.Array:
    prior = original()
    return prior.astype(jnp.bfloat16).astype(prior.dtype)


POLICY = (
    policy("prior in bfloat16 beside masked logits", "the model", "bfloat16 leak", calling("", _short_prior, "known")),
    policy(
        "prior forgotten beside masked logits",
        "the model",
        "residual",
        calling("", lambda self, original: jnp.zeros_like(original()), "known"),
        also=("bias",),
    ),
    policy(
        "prior off by 1e-5 beside masked logits",
        "the model",
        None,
        calling("", lambda self, original: original() + 1e-5, "known"),
        also=("bias",),
    ),
    policy(
        "legal moves masked",
        "the model",
        None,
        calling("", lambda self, original, q, legal: original(q, 1 - legal), "masked"),
        also=("attention mask", "mask"),
    ),
    policy(
        "mask of the next example",
        "the model",
        "shifted by one",
        calling("", lambda self, original, q, legal: original(q, jnp.roll(legal, 1, 0)), "masked"),
        also=("attention mask", "mask"),
    ),
    policy(
        "mask of -1e8",
        "the model",
        None,
        calling("", lambda self, original, q, legal: jnp.where(legal == 0, -1e8, q), "masked"),
        also=("attention mask", "mask", "mask value"),
    ),
    policy(
        "mask added to the logits",
        "the model",
        None,
        calling("", lambda self, original, q, legal: q + (legal == 0) * -1e9, "masked"),
        also=("attention mask", "mask"),
    ),
)

MIXTURE_MISTAKES = (*SWITCH, *VAE, *DUELING, *POLICY)
