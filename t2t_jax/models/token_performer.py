"""The T2T module's performer layer: softmax attention by positive random features, linear in the number of tokens.

Source: yitu-opensource/T2T-ViT, models/token_performer.py; Performer (arXiv 2009.14794), equation 5.
Twin: t2t_torch/models/token_performer.py.
Shapes: B batch, N tokens, C channels in, D token_dim, M random features.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from t2t_jax.models.layers import GELU, Buffer, Dropout, LayerNorm, Linear, Sequential


class TokenPerformer(nnx.Module):
    """Performer layer of the T2T module, (B, N, dim) -> (B, N, in_dim); the skip connection of its attention is `v`.

    As upstream, the fused projection holds **k, q, v** in this order and has a bias; `w` (M, D) has orthogonal rows of
    norm sqrt(M) and is saved, but never redrawn or trained; M = D // 2. Upstream hard-codes both dropout rates to 0.1,
    regardless of the model's `drop_rate`; here they are `drop`.

    Exponentials and sums are computed in at least float32, and so are their products on hardware that would round the
    factors; a float64 model uses float64 throughout.
    """

    epsilon = 1e-8

    def __init__(
        self,
        dim: int,
        in_dim: int,
        kernel_ratio: float = 0.5,
        drop: float = 0.1,
        *,
        rngs: nnx.Rngs,
        param_dtype: Any = jnp.float32,
        **spec: Any,
    ) -> None:
        spec |= {"rngs": rngs, "param_dtype": param_dtype}
        self.m = int(in_dim * kernel_ratio)
        orthogonal = jax.nn.initializers.orthogonal(math.sqrt(self.m))
        self.w = Buffer(orthogonal(rngs.params(), (self.m, in_dim), param_dtype))
        self.kqv = Linear(dim, 3 * in_dim, **spec)
        self.dp = Dropout(drop)
        self.proj = Linear(in_dim, in_dim, **spec)
        self.norm1 = LayerNorm(dim, **spec)
        self.norm2 = LayerNorm(in_dim, **spec)
        self.mlp = Sequential([Linear(in_dim, in_dim, **spec), GELU(), Linear(in_dim, in_dim, **spec), Dropout(drop)])

    def prm_exp(self, x: jax.Array) -> jax.Array:
        """Return positive random features exp(w x - |x|^2 / 2) / sqrt(M); (B, N, D) -> (B, N, M)."""
        half_norm = (x * x).sum(axis=-1, keepdims=True) / 2
        return jnp.exp(_matmul(x, self.w[...].astype(x.dtype).T) - half_norm) / math.sqrt(self.m)

    def single_attn(self, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        """Return v + proj(attention), computed without the N x N matrix: q' (sum_n k'_n v_n^T) / (q' sum_n k'_n)."""
        k, q, v = jnp.split(self.kqv(x), 3, axis=-1)
        dtype = jnp.promote_types(v.dtype, jnp.float32)
        kp, qp = self.prm_exp(k.astype(dtype)), self.prm_exp(q.astype(dtype))
        numerator = _matmul(qp, _matmul(kp.swapaxes(1, 2), v.astype(dtype)))
        denominator = _matmul(qp, kp.sum(axis=1)[..., None])
        y = (numerator / (denominator + self.epsilon)).astype(v.dtype)
        return v + self.dp(self.proj(y), rngs=rngs)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = self.single_attn(self.norm1(x), rngs)
        return x + self.mlp(self.norm2(x), rngs)


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return a @ b without rounding float32 factors, which TPUs and GPUs do by default."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
