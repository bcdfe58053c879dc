"""Attention, causal or with a mask of padding, written out or by PyTorch's own function; and Fourier layers."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch.nn import functional as F

from tools.reliability.grammar.node import (
    TOKENS,
    VECTOR,
    FlaxHalf,
    Format,
    Node,
    TorchHalf,
    UnfitError,
    linear,
    param,
    stop,
    streams,
)

FILLS = {"inf": -math.inf, "1e9": -1e9, "finfo": float(torch.finfo(torch.float32).min)}
"""What stands where attention must not go."""


@dataclasses.dataclass(frozen=True, repr=False)
class Attention(Node):
    """Self-attention. `fill` is a key of FILLS; `sdpa` takes PyTorch's fused function; `padded` needs the mask.

    `groups` heads share one head of keys and values; `float32` computes the softmax in float32 in both frameworks,
    where it is written out in both.
    """

    kinds = (TOKENS,)
    heads: int = 1
    groups: int = 1
    causal: bool = False
    padded: bool = False
    sdpa: bool = False
    float32: bool = False
    fill: str = "inf"
    rate: float = 0.0

    @property
    def needs_mask(self) -> bool:  # type: ignore[override]
        return self.padded

    def out(self, given: Format) -> Format:
        self.check(given)
        if self.sdpa and self.float32:
            raise UnfitError("PyTorch's own function computes in the dtype of its inputs")
        if given.channels % self.heads or self.heads % self.groups:
            raise UnfitError(f"{given.channels} channels are not {self.heads} heads in groups of {self.groups}")
        return given

    def mistakes(self, given: Format) -> tuple[str, ...]:
        found = ["scale missing", "softmax over the queries", "attention stopped", "q and k exchanged", "k as v"]
        found += ["scale of all channels", "heads interleaved"] if self.heads > 1 else []
        found += ["groups tiled"] if 1 < self.groups < self.heads else []
        found += ["not causal", "diagonal 1", "diagonal -1", "anticausal"] if self.causal else []
        found += (
            ["mask ignored", "mask inverted", "mask of the queries", "mask after the softmax"] if self.padded else []
        )
        found += ["float32 softmax"] if not self.float32 else []
        found += ["dropout forgotten", "dropout rate"] if self.rate else []
        return tuple(found)


class TorchAttention(TorchHalf, of=Attention):
    def __init__(self, node: Attention, given: Format) -> None:
        super().__init__(node, given)
        channels = given.channels
        shared = channels // node.groups
        self.q, self.k, self.v = (torch.nn.Linear(channels, to) for to in (channels, shared, shared))
        self.proj = torch.nn.Linear(channels, channels)
        self.drop = torch.nn.Dropout(node.rate) if node.rate and not node.sdpa else None

    def _heads(self, x: torch.Tensor, count: int) -> torch.Tensor:
        return x.unflatten(-1, (count, -1)).transpose(1, 2)

    def _allowed(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        allowed = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device)
        allowed = allowed.tril() if self.node.causal else allowed
        return allowed if mask is None else allowed & (mask > 0)[:, None, None, :]

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        node = self.node
        q = self._heads(self.q(x), node.heads)
        k, v = (
            self._heads(y, node.heads // node.groups).repeat_interleave(node.groups, 1) for y in (self.k(x), self.v(x))
        )
        if node.sdpa:
            drop = node.rate if self.training else 0.0
            free = mask is None
            allowed = None if free else self._allowed(x, mask)
            y = F.scaled_dot_product_attention(q, k, v, allowed, drop, is_causal=free and node.causal)
        else:
            y = self._weights(q, k, self._allowed(x, mask)) @ v
        return self.proj(y.transpose(1, 2).flatten(2))

    def _weights(self, q: torch.Tensor, k: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(~allowed, FILLS[self.node.fill])
        dtype = torch.float32 if self.node.float32 else scores.dtype
        weights = scores.softmax(-1, dtype=dtype).to(scores.dtype)
        return weights if self.drop is None else self.drop(weights)


class FlaxAttention(FlaxHalf, of=Attention):
    def __init__(self, node: Attention, given: Format, twin: TorchAttention) -> None:
        super().__init__(node, given, twin)
        self.q, self.k, self.v, self.proj = (linear(x) for x in (twin.q, twin.k, twin.v, twin.proj))
        rate = {"dropout forgotten": 0.0, "dropout rate": node.rate / 2 + 0.05}.get(node.own, node.rate)
        self.drop = nnx.Dropout(rate, rngs=streams()) if node.rate else None

    def _heads(self, x: jax.Array, count: int) -> jax.Array:
        B, N, C = x.shape
        if self.wrong == "heads interleaved":
            return x.reshape(B, N, C // count, count).transpose(0, 3, 1, 2)
        return x.reshape(B, N, count, C // count).swapaxes(1, 2)

    def _shared(self, x: jax.Array) -> jax.Array:
        node = self.node
        heads = self._heads(x, node.heads // node.groups)
        tiled = node.own == "groups tiled"
        return jnp.tile(heads, (1, node.groups, 1, 1)) if tiled else jnp.repeat(heads, node.groups, 1)

    def _allowed(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        wrong, allowed = self.wrong, jnp.ones((x.shape[1], x.shape[1]), bool)
        if self.node.causal and wrong != "not causal":
            shift = {"diagonal 1": 1, "diagonal -1": -1}.get(wrong, 0)
            allowed = jnp.triu(allowed) if wrong == "anticausal" else jnp.tril(allowed, shift)
        if mask is None or wrong in ("mask ignored", "mask after the softmax"):
            return allowed
        kept = mask <= 0 if wrong == "mask inverted" else mask > 0
        return allowed & (kept[:, None, :, None] if wrong == "mask of the queries" else kept[:, None, None, :])

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        wrong = self.wrong
        q, k = self._heads(self.q(x), self.node.heads), self._shared(self.k(x))
        v = k if wrong == "k as v" else self._shared(self.v(x))
        weights = self._weights(*((k, q) if wrong == "q and k exchanged" else (q, k)), self._allowed(x, mask))
        if wrong == "mask after the softmax" and mask is not None:
            weights = jnp.where((mask > 0)[:, None, None, :], weights, 0)
        y = (weights if self.drop is None else self.drop(weights)) @ v
        if wrong == "heads interleaved":
            return self.proj(y.transpose(0, 2, 3, 1).reshape(x.shape))
        return self.proj(y.swapaxes(1, 2).reshape(x.shape))

    def _weights(self, q: jax.Array, k: jax.Array, allowed: jax.Array) -> jax.Array:
        node, wrong = self.node, self.wrong
        size = {"scale missing": 1, "scale of all channels": node.heads * q.shape[-1]}.get(wrong, q.shape[-1])
        fill = -math.inf if node.sdpa else FILLS[node.fill]
        scores = jnp.where(allowed, q @ k.mT / math.sqrt(size), fill)
        dtype = jnp.float32 if node.float32 or wrong == "float32 softmax" else scores.dtype
        weights = jax.nn.softmax(scores.astype(dtype), -2 if wrong == "softmax over the queries" else -1)
        weights = stop(weights) if wrong == "attention stopped" else weights
        return weights.astype(scores.dtype)


@dataclasses.dataclass(frozen=True, repr=False)
class Spectrum(Node):
    """A learned filter of frequencies, complex or of two real tensors; or the real part of the transform alone."""

    kinds = (VECTOR, TOKENS)
    how: str = "filter"  # "filter", "complex filter", "real part"

    def mistakes(self, given: Format) -> tuple[str, ...]:
        if self.how == "real part":
            return "imaginary part", "inverse", "orthonormal"
        return (*(("conjugated", "imaginary part dropped") if given.channels > 2 else ()), "orthonormal")


class TorchSpectrum(TorchHalf, of=Spectrum):
    def __init__(self, node: Spectrum, given: Format) -> None:
        super().__init__(node, given)
        self.how, count = node.how, given.channels // 2 + 1
        if self.how == "filter":
            self.real, self.imag = (torch.nn.Parameter(torch.randn(count)) for _ in range(2))
        elif self.how == "complex filter":
            self.weight = torch.nn.Parameter(torch.randn(count, dtype=torch.complex64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "real part":
            return torch.fft.fft(x).real
        weight = torch.complex(self.real, self.imag) if self.how == "filter" else self.weight
        return torch.fft.irfft(torch.fft.rfft(x) * weight, n=x.shape[-1])


class FlaxSpectrum(FlaxHalf, of=Spectrum):
    def __init__(self, node: Spectrum, given: Format, twin: TorchSpectrum) -> None:
        super().__init__(node, given, twin)
        if node.how == "filter":
            self.real, self.imag = param(twin.real), param(twin.imag)
        elif node.how == "complex filter":
            self.weight = param(twin.weight)

    def __call__(self, x: jax.Array) -> jax.Array:
        wrong = self.wrong
        norm = "ortho" if wrong == "orthonormal" else None
        if self.node.how == "real part":
            y = jnp.fft.ifft(x) if wrong == "inverse" else jnp.fft.fft(x, norm=norm)
            return y.imag if wrong == "imaginary part" else y.real
        weight = self.weight[...] if self.node.how != "filter" else jax.lax.complex(self.real[...], self.imag[...])
        weight = {"conjugated": weight.conj(), "imaginary part dropped": weight.real}.get(wrong, weight)
        spectrum = jnp.fft.rfft(x, norm=norm)
        return jnp.fft.irfft(spectrum * weight, n=x.shape[-1])
