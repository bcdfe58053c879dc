"""Pairs whose layers ask for float32, on both sides or on one: right ports and wrong ones."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch.nn import functional as F

WIDTH, HEADS, TOKENS = 8, 2, 6
X = np.random.RandomState(0).standard_normal((2, TOKENS, WIDTH))


class TorchNorm(torch.nn.Module):
    """RMSNorm as decoders have it: computed in float32 whatever comes in."""

    def __init__(self, dtype: torch.dtype | None = torch.float32) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.rand(WIDTH) + 0.5)
        self.wide_type = dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dtype = x.dtype
        x = x if self.wide_type is None else x.to(self.wide_type)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * x.to(dtype)


class JaxNorm(nnx.Module):
    def __init__(self, dtype: Any = jnp.float32, *, epsilon: float = 1e-6) -> None:
        self.weight = nnx.Param(jnp.ones(WIDTH))
        self.wide_type, self.epsilon = dtype, epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        dtype = x.dtype
        x = x if self.wide_type is None else x.astype(self.wide_type)
        x = x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + self.epsilon)
        return self.weight[...] * x.astype(dtype)


class TorchAttention(torch.nn.Module):
    """Attention whose softmax is computed in float32."""

    def __init__(self, dtype: torch.dtype | None = torch.float32) -> None:
        super().__init__()
        self.qkv, self.proj = torch.nn.Linear(WIDTH, 3 * WIDTH), torch.nn.Linear(WIDTH, WIDTH)
        self.softmax_type = dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * (WIDTH // HEADS) ** -0.5
        weights = F.softmax(scores, dim=-1, dtype=self.softmax_type).to(q.dtype)
        return self.proj((weights @ v).transpose(1, 2).reshape(x.shape))


class JaxAttention(nnx.Module):
    def __init__(self, dtype: Any = jnp.float32, *, scale: float = (WIDTH // HEADS) ** -0.5) -> None:
        rngs = nnx.Rngs(0)
        self.qkv, self.proj = nnx.Linear(WIDTH, 3 * WIDTH, rngs=rngs), nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.softmax_type, self.scale = dtype, scale

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = jnp.transpose(self.qkv(x).reshape(*x.shape[:2], 3, HEADS, WIDTH // HEADS), (2, 0, 3, 1, 4))
        scores = q @ k.swapaxes(-2, -1) * self.scale
        weights = jax.nn.softmax(scores if self.softmax_type is None else scores.astype(self.softmax_type))
        return self.proj((weights.astype(q.dtype) @ v).swapaxes(1, 2).reshape(x.shape))


class TorchBlock(torch.nn.Module):
    def __init__(self, dtype: torch.dtype | None = torch.float32, softmax_type: Any = torch.float32) -> None:
        super().__init__()
        self.norm, self.attn = TorchNorm(dtype), TorchAttention(softmax_type)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.attn(self.norm(x))


class JaxBlock(nnx.Module):
    def __init__(self, norm: JaxNorm | None = None, attn: JaxAttention | None = None) -> None:
        self.norm, self.attn = norm or JaxNorm(), attn or JaxAttention()

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.attn(self.norm(x))


class TorchModel(torch.nn.Module):
    """One block and a head: what casts is inside of a module inside of the model."""

    def __init__(self, block: TorchBlock | None = None) -> None:
        super().__init__()
        self.block, self.head = block or TorchBlock(), torch.nn.Linear(WIDTH, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(x).mean(1))


class JaxModel(nnx.Module):
    def __init__(self, norm: JaxNorm | None = None, attn: JaxAttention | None = None) -> None:
        self.block, self.head = JaxBlock(norm, attn), nnx.Linear(WIDTH, 5, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.block(x).mean(1))


class TorchGroupNorm(torch.nn.GroupNorm):
    """As diffusion models have it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.float()).type(x.dtype)


class TorchConv(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = TorchGroupNorm(2, WIDTH), torch.nn.Conv2d(WIDTH, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.silu(self.norm(x)))


class JaxConv(nnx.Module):
    def __init__(self, epsilon: float = 1e-5) -> None:
        rngs = nnx.Rngs(0)
        self.norm = JaxGroupNorm(WIDTH, num_groups=2, epsilon=epsilon, rngs=rngs)
        self.conv = nnx.Conv(WIDTH, 4, (3, 3), padding=1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(jax.nn.silu(self.norm(x)))


class JaxGroupNorm(nnx.GroupNorm):
    def __call__(self, x: jax.Array, *, mask: Any = None) -> jax.Array:
        return super().__call__(x.astype(jnp.float32)).astype(x.dtype)


class TorchStock(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attn(x, x, x, need_weights=False)[0]


class JaxStock(nnx.Module):
    def __init__(self) -> None:
        self.attn = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.attn(x)


def inverse_frequencies(theta: float = 10000.0, library: Any = np) -> Any:
    """As decoders compute them, in float32."""
    exponents = library.arange(0, WIDTH, 2, dtype=library.float32) / WIDTH
    return 1.0 / theta**exponents


class TorchRope(torch.nn.Module):
    """Rotates pairs of channels, `i` with `i + WIDTH / 2`; frequencies held, or computed in the call."""

    def __init__(self, *, held: bool = True) -> None:
        super().__init__()
        self.proj = torch.nn.Linear(WIDTH, WIDTH)
        self.held = held
        self.register_buffer("inv_freq", inverse_frequencies(library=torch), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.proj(x)
        positions = torch.arange(x.shape[1], dtype=torch.float32)
        angles = positions[:, None] * (self.inv_freq if self.held else inverse_frequencies(library=torch))
        cos, sin = (torch.cat([f(angles)] * 2, -1).to(x.dtype) for f in (torch.cos, torch.sin))
        half = torch.cat([-x[..., WIDTH // 2 :], x[..., : WIDTH // 2]], -1)
        return x * cos + half * sin


class JaxRope(nnx.Module):
    """With `table`: cosines and sines of shape (TOKENS, WIDTH), held in float32; else computed in the call."""

    def __init__(self, table: Any = None, *, theta: float = 10000.0, interleaved: bool = False) -> None:
        self.proj = nnx.Linear(WIDTH, WIDTH, rngs=nnx.Rngs(0))
        self.held, self.theta, self.interleaved = table is not None, theta, interleaved
        self.cos, self.sin = (jnp.zeros(()), jnp.zeros(())) if table is None else table

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.proj(x)
        if not self.held:
            positions = jnp.arange(x.shape[1], dtype=jnp.float32)
            angles = positions[:, None] * inverse_frequencies(self.theta, jnp)
            angles = jnp.repeat(angles, 2, -1) if self.interleaved else jnp.concatenate([angles] * 2, -1)
            cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
        else:
            cos, sin = self.cos, self.sin
        if self.interleaved:
            half = jnp.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)
        else:
            half = jnp.concatenate([-x[..., WIDTH // 2 :], x[..., : WIDTH // 2]], -1)
        return x * cos + half * sin


class TorchRotary(torch.nn.Module):
    def __init__(self, *, held: bool = True) -> None:
        super().__init__()
        self.rope, self.norm, self.head = TorchRope(held=held), torch.nn.LayerNorm(WIDTH), torch.nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.rope(x)))


class JaxRotary(nnx.Module):
    def __init__(self, rope: JaxRope, epsilon: float = 1e-5) -> None:
        rngs = nnx.Rngs(0)
        self.rope, self.head = rope, nnx.Linear(WIDTH, 3, rngs=rngs)
        self.norm = nnx.LayerNorm(WIDTH, epsilon=epsilon, use_fast_variance=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.norm(self.rope(x)))


def rope_table(theta: float = 10000.0, first: int = 0) -> tuple[jax.Array, jax.Array]:
    """Made in float64 by numpy and rounded once: right, and other in the last digit than float32's own."""
    angles = np.arange(first, first + TOKENS)[:, None] * theta ** -(np.arange(0, WIDTH, 2) / WIDTH)
    angles = np.concatenate([angles, angles], -1)
    return jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)
