"""Normalisations: flax's own layers against PyTorch's, and one that users write, in float32 on both sides."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import torch
from flax import nnx

from tools.reliability.grammar.node import (
    EMPTY_NORM,
    IMAGE,
    TOKENS,
    VECTOR,
    Format,
    Node,
    UnfitError,
    empty,
    fill,
    param,
    stop,
)

AFFINE = ("scale missing", "1 + scale")
LIKELY = ("epsilon", "statistics stopped")


def _affine(module: Any, twin: Any) -> Any:
    """The scale and the bias of PyTorch's layer in flax's."""
    fill(module.scale, twin.weight)
    if getattr(twin, "bias", None) is not None:
        fill(module.bias, twin.bias)
    return module


def _with_affine(x: jax.Array, module: Any, wrong: str) -> jax.Array:
    scale = {"scale missing": 1.0, "1 + scale": 1 + module.scale[...]}.get(wrong, module.scale[...])
    return (
        x * scale if getattr(module, "bias", None) is None or wrong == "bias missing" else x * scale + module.bias[...]
    )


@dataclasses.dataclass(frozen=True, repr=False)
class LayerNorm(Node):
    kinds = (VECTOR, TOKENS)
    wrongs = (*LIKELY, *AFFINE, "bias missing", "unbiased variance", "no mean", "over the tokens")
    eps: float = 1e-5

    def build(self, given: Format) -> torch.nn.Module:
        return torch.nn.LayerNorm(given.channels, eps=self.eps)

    def port(self, given: Format, twin: Any) -> nnx.Module:
        eps = 1e-6 if self.own == "epsilon" else self.eps
        module: Any = nnx.LayerNorm(
            given.channels, epsilon=eps, use_fast_variance=False, rngs=nnx.Rngs(0), **EMPTY_NORM
        )
        if self.own and self.own != "epsilon":
            module.__class__, module.wrong = WrongLayerNorm, self.own
        return _affine(module, twin)


class WrongLayerNorm(nnx.LayerNorm):
    wrong: str

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        axis = -2 if self.wrong == "over the tokens" and x.ndim == 3 else -1
        mean = 0.0 if self.wrong == "no mean" else x.mean(axis, keepdims=True)
        count = x.shape[axis] / max(x.shape[axis] - 1, 1) if self.wrong == "unbiased variance" else 1
        variance = ((x - mean) ** 2).mean(axis, keepdims=True) * count
        if self.wrong == "statistics stopped":
            mean, variance = stop(mean), stop(variance)
        return _with_affine((x - mean) / jnp.sqrt(variance + self.epsilon), self, self.wrong)


@dataclasses.dataclass(frozen=True, repr=False)
class RMSNorm(Node):
    """PyTorch's and flax's own; if `float32` both are written out and compute in float32 on purpose."""

    kinds = (VECTOR, TOKENS)
    wrongs = (*AFFINE, "mean subtracted", "epsilon outside", "statistics stopped")
    eps: float = 1e-6
    float32: bool = False

    def build(self, given: Format) -> torch.nn.Module:
        if self.float32:
            return TorchRMSNorm(given.channels, self.eps)
        return torch.nn.RMSNorm(given.channels, eps=self.eps)

    def port(self, given: Format, twin: Any) -> nnx.Module:
        if self.float32 or self.own:
            module = (
                FlaxRMSNorm(self, twin)
                if self.float32
                else WrongRMSNorm(given.channels, scale_init=empty, rngs=nnx.Rngs(0))
            )
            module.node = self
            return module if self.float32 else _affine(module, twin)
        return _affine(
            nnx.RMSNorm(given.channels, epsilon=self.eps, use_fast_variance=False, scale_init=empty, rngs=nnx.Rngs(0)),
            twin,
        )


class TorchRMSNorm(torch.nn.Module):
    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps, self.scale = eps, torch.nn.Parameter(torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.to(torch.float32)
        return self.scale * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


def _rms(x: jax.Array, node: RMSNorm, scale: jax.Array, dtype: Any) -> jax.Array:
    wrong, h = node.own, x.astype(dtype)
    h = h - h.mean(-1, keepdims=True) if wrong == "mean subtracted" else h
    mean = (h * h).mean(-1, keepdims=True)
    mean = stop(mean) if wrong == "statistics stopped" else mean
    inverse = 1 / (jnp.sqrt(mean) + node.eps) if wrong == "epsilon outside" else jax.lax.rsqrt(mean + node.eps)
    scale = {"scale missing": jnp.ones_like(scale), "1 + scale": 1 + scale}.get(wrong, scale)
    return scale * (h * inverse).astype(x.dtype)


class FlaxRMSNorm(nnx.Module):
    def __init__(self, node: RMSNorm, twin: TorchRMSNorm) -> None:
        self.node, self.scale = node, param(twin.scale)

    def __call__(self, x: jax.Array) -> jax.Array:
        return _rms(x, self.node, self.scale[...], jnp.float32)


class WrongRMSNorm(nnx.RMSNorm):
    node: RMSNorm

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        return _rms(x, self.node, self.scale[...], x.dtype)  # type: ignore[index]


@dataclasses.dataclass(frozen=True, repr=False)
class GroupNorm(Node):
    kinds = (VECTOR, IMAGE)
    groups: int = 1
    eps: float = 1e-5

    def out(self, given: Format) -> Format:
        self.check(given)
        if given.channels % self.groups:
            raise UnfitError(f"{given.channels} channels are not {self.groups} groups")
        return given

    def mistakes(self, given: Format) -> tuple[str, ...]:
        ways = ("groups interleaved",) if 1 < self.groups < given.channels else ()
        return ("epsilon", *ways, *(("one group",) if self.groups > 1 else ()))

    def build(self, given: Format) -> torch.nn.Module:
        return torch.nn.GroupNorm(self.groups, given.channels, eps=self.eps)

    def port(self, given: Format, twin: Any) -> nnx.Module:
        eps = 1e-4 if self.own == "epsilon" else self.eps
        groups = 1 if self.own == "one group" else self.groups
        module = nnx.GroupNorm(
            given.channels, num_groups=groups, epsilon=eps, use_fast_variance=False, rngs=nnx.Rngs(0), **EMPTY_NORM
        )
        if self.own == "groups interleaved":
            module.__class__ = InterleavedGroupNorm
        return _affine(module, twin)


class InterleavedGroupNorm(nnx.GroupNorm):
    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        parts = x.reshape(*x.shape[:-1], -1, self.num_groups)
        axes = tuple(range(1, parts.ndim - 1))
        mean, variance = parts.mean(axes, keepdims=True), parts.var(axes, keepdims=True)
        return _with_affine(((parts - mean) / jnp.sqrt(variance + self.epsilon)).reshape(x.shape), self, "")


@dataclasses.dataclass(frozen=True, repr=False)
class BatchNorm(Node):
    """With running statistics: for models that are not trained."""

    kinds = (VECTOR, IMAGE)
    wrongs = ("epsilon", "statistics of the batch", "running mean ignored", "running deviation for variance")
    eps: float = 1e-5

    def build(self, given: Format) -> torch.nn.Module:
        module = (torch.nn.BatchNorm2d if given.kind == IMAGE else torch.nn.BatchNorm1d)(given.channels, eps=self.eps)
        module.running_mean.normal_()  # type: ignore[union-attr, operator]
        module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr, operator]
        return module

    def port(self, given: Format, twin: Any) -> nnx.Module:
        eps = 1e-3 if self.own == "epsilon" else self.eps
        module: Any = nnx.BatchNorm(given.channels, epsilon=eps, momentum=0.9, rngs=nnx.Rngs(0), **EMPTY_NORM)
        fill(module.mean, twin.running_mean)
        fill(module.var, twin.running_var)
        if self.own and self.own != "epsilon":
            module.__class__, module.wrong = WrongBatchNorm, self.own
        return _affine(module, twin)


class WrongBatchNorm(nnx.BatchNorm):
    wrong: str

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        mean, variance = self.mean[...], self.var[...]
        if self.wrong == "statistics of the batch":
            axes = tuple(range(x.ndim - 1))
            mean, variance = x.mean(axes), x.var(axes)
        mean = 0 * mean if self.wrong == "running mean ignored" else mean
        inverse = 1 / (variance + self.epsilon)
        inverse = inverse if self.wrong == "running deviation for variance" else jnp.sqrt(inverse)
        return _with_affine((x - mean) * inverse, self, "")
