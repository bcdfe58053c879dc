"""The same ViT as one would write it in Flax NNX: other names, nnx.MultiHeadAttention, no module per reshape.

Shapes: B batch, N tokens, D width.
"""

import jax
import jax.numpy as jnp
from flax import nnx


def attention(query: jax.Array, key: jax.Array, value: jax.Array, **unused: object) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v in the precision of its inputs.

    nnx.dot_product_attention takes its softmax in float32 whatever comes in; `parity` finds that in float64.
    """
    scores = jnp.einsum("bqhd,bkhd->bhqk", query * query.shape[-1] ** -0.5, key)
    return jnp.einsum("bhqk,bkhd->bqhd", nnx.softmax(scores), value)


class EncoderLayer(nnx.Module):
    def __init__(self, dim: int, num_heads: int, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(dim, epsilon=1e-6, use_fast_variance=False, rngs=rngs)
        self.self_attention = nnx.MultiHeadAttention(num_heads, dim, attention_fn=attention, decode=False, rngs=rngs)
        self.scale1 = LayerScale(dim)
        self.norm2 = nnx.LayerNorm(dim, epsilon=1e-6, use_fast_variance=False, rngs=rngs)
        self.mlp = Mlp(dim, 4 * dim, rngs)
        self.scale2 = LayerScale(dim)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.scale1(self.self_attention(self.norm1(x)))
        return x + self.scale2(self.mlp(self.norm2(x)))


class LayerScale(nnx.Module):
    def __init__(self, dim: int):
        self.gamma = nnx.Param(jnp.full((dim,), 0.1))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.gamma[...][None, None]


class Mlp(nnx.Module):
    def __init__(self, dim: int, hidden: int, rngs: nnx.Rngs):
        self.up = nnx.Linear(dim, hidden, rngs=rngs)
        self.down = nnx.Linear(hidden, dim, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(nnx.gelu(self.up(x), approximate=False))


class VisionTransformer(nnx.Module):
    """Images (B, H, W, 3) to logits."""

    def __init__(self, img_size=32, patch=8, dim=32, depth=2, num_heads=4, num_classes=10, *, rngs: nnx.Rngs):
        self.embedding = nnx.Conv(3, dim, (patch, patch), patch, padding="VALID", rngs=rngs)
        self.cls_token = nnx.Param(jnp.zeros((1, 1, dim)))
        self.pos_embed = nnx.Param(jnp.zeros((1, (img_size // patch) ** 2 + 1, dim)))
        self.encoder = nnx.List([EncoderLayer(dim, num_heads, rngs) for _ in range(depth)])
        self.encoder_norm = nnx.LayerNorm(dim, epsilon=1e-6, use_fast_variance=False, rngs=rngs)
        self.head = nnx.Linear(dim, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.embedding(x)
        x = x.reshape(len(x), -1, x.shape[-1])
        x = jnp.concatenate([jnp.broadcast_to(self.cls_token[...], (len(x), 1, x.shape[-1])), x], axis=1)
        x = x + self.pos_embed[...]
        for layer in self.encoder:
            x = layer(x)
        return self.head(self.encoder_norm(x)[:, 0])
