"""Correct pairs, small enough to be checked in a second: one per model family, and generic ones."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import t2t_torch.models.layers
from parity.carry.convert import torch_to_jax
from parity.carry.random_weights import randomize
from parity.carry.rules import Rules
from parity.causes.switches.resize import weights
from t2t_parity.pair import make_pair
from t2t_parity.selftest.foreign import FOREIGN
from t2t_parity.selftest.foreign.architecture import Architecture, Inputs
from t2t_parity.selftest.twins import TWINS

Pair = tuple[torch.nn.Module, nnx.Module, Inputs]
"""Both models with the same weights, and inputs of the PyTorch model."""

_SMALL: dict[str, Any] = {"img_size": 32, "num_classes": 5, "embed_dim": 32, "num_heads": 2}
_T2T: dict[str, Any] = {**_SMALL, "depth": 1, "mlp_ratio": 2.0, "token_dim": 8}
_VIT: dict[str, Any] = {**_SMALL, "depth": 1, "mlp_ratio": 2.0, "patch_size": 8}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "performer": ("t2t_vit_7", _T2T),
    "transformer": ("t2t_vit_t_14", _T2T),
    "convolution": ("t2t_vit_7", {**_T2T, "tokens_type": "convolution"}),
    "se": ("t2t_vit_14_se", _T2T),
    "dense": ("t2t_vit_dense", {**_SMALL, "token_dim": 8, "growth_rate": 32, "block_config": (1, 1)}),
    "ghost": ("t2t_vit_16_ghost", {**_T2T, "mlp_ratio": 3.0}),
    "vit": ("vit_base_patch16_224", _VIT),
    "distilled": ("vit_deit_tiny_distilled_patch16_224", _VIT),
}
"""Models of this repository by family: name, and small sizes."""


class TorchConvNet(torch.nn.Module):
    """Convolutions, batch and group normalization, a residual, average pooling; (B, 3, H, W) -> (B, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.norm1 = torch.nn.BatchNorm2d(8)
        self.act1 = torch.nn.ReLU()
        self.conv2 = torch.nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.norm2 = torch.nn.GroupNorm(4, 8)
        self.act2 = torch.nn.SiLU()
        self.down = torch.nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act1(self.norm1(self.conv1(x)))
        x = x + self.act2(self.norm2(self.conv2(x)))
        return self.head(self.down(x).mean((2, 3)))


class BatchNorm(nnx.BatchNorm):
    """Batch normalization with an unbiased running variance, as in PyTorch (that of flax is biased)."""

    def __call__(self, x: jax.Array, *args: Any, **options: Any) -> jax.Array:
        old = self.var[...]
        y = super().__call__(x, *args, **options)
        if not self.use_running_average:
            count = x.size // x.shape[-1]
            self.var[...] += (self.var[...] - self.momentum * old) / (count - 1)
        return y


class Relu(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.relu(x)


class Silu(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.silu(x)


class ConvNet(nnx.Module):
    """Twin of `TorchConvNet`; (B, H, W, 3) -> (B, 5)."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(3, 8, (3, 3), padding=1, rngs=rngs)
        self.norm1 = BatchNorm(8, momentum=0.9, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.act1 = Relu()
        self.conv2 = nnx.Conv(8, 8, (3, 3), padding=1, feature_group_count=2, rngs=rngs)
        self.norm2 = nnx.GroupNorm(8, num_groups=4, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.act2 = Silu()
        self.down = nnx.Conv(8, 8, (3, 3), strides=2, padding=1, rngs=rngs)
        self.head = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.act1(self.norm1(self.conv1(x)))
        x = x + self.act2(self.norm2(self.conv2(x)))
        return self.head(self.down(x).mean((1, 2)))


class TorchOffset(torch.nn.Module):
    """LayerNorm of an input with mean 1000, where the variance as E[x^2] - E[x]^2 loses six digits."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + 1000)


class Offset(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(64, epsilon=1e-5, use_fast_variance=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(x + 1000)


class TorchResize(torch.nn.Module):
    """Bicubic resize of PyTorch, 8 x 8 -> 12 x 12, followed by a projection of the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = torch.nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(torch.nn.functional.interpolate(x, size=(12, 12), mode="bicubic", align_corners=False))


class Resize(nnx.Module):
    """Twin of `TorchResize`; the coefficient a of PyTorch is -0.75."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.proj = nnx.Conv(3, 4, (1, 1), rngs=rngs)

    def resized(self, x: jax.Array) -> jax.Array:
        kernel = weights(8, 12, -0.75, antialias=False, edge="clamp").numpy()
        return jnp.einsum("th,sw,bhwc->btsc", kernel, kernel, x)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.proj(self.resized(x))


class TorchDropout(torch.nn.Module):
    """Residual branch with dropout and stochastic depth; (B, N, 8) -> (B, N, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.drop = torch.nn.Linear(8, 16), torch.nn.Dropout(0.1)
        self.fc2, self.drop_path = torch.nn.Linear(16, 8), t2t_torch.models.layers.DropPath(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.drop_path(self.fc2(self.drop(self.fc1(x))))


class Dropout(nnx.Module):
    """Twin of `TorchDropout`."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.fc1, self.drop = nnx.Linear(8, 16, rngs=rngs), nnx.Dropout(0.1, rngs=rngs)
        self.fc2, self.drop_path = nnx.Linear(16, 8, rngs=rngs), nnx.Dropout(0.1, broadcast_dims=(1, 2), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.drop_path(self.fc2(self.drop(self.fc1(x))))


class TorchRandomBlock(torch.nn.Module):
    """Attention with dropout, functional dropout, manual stochastic depth; (B, N, 8) -> (B, N, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = torch.nn.Linear(8, 24), torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        rate = 0.2 if self.training else 0.0
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=rate)
        y = torch.nn.functional.dropout(self.proj(y.transpose(1, 2).flatten(2)), 0.1, self.training)
        if self.training:
            y = y * y.new_empty(len(y), 1, 1).bernoulli_(0.7) / 0.7
        return x + y


class RandomBlock(nnx.Module):
    """Twin of `TorchRandomBlock`; its attributes are varied by the mutations."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.qkv, self.proj, self.rngs = nnx.Linear(8, 24, rngs=rngs), nnx.Linear(8, 8, rngs=rngs), rngs.fork()
        self.attention, self.rate, self.depth, self.extra = 0.2, 0.1, 0.3, 0.0
        self.heads_share, self.depth_shares = (), (1, 2)
        self.early, self.scaled, self.deterministic = False, True, False

    def dropped(self, x: jax.Array, rate: float, *shared: int) -> jax.Array:
        if self.deterministic or rate == 0:
            return x
        shape = [1 if axis in shared else n for axis, n in enumerate(x.shape)]
        kept = jnp.where(jax.random.bernoulli(self.rngs.dropout(), 1 - rate, shape), x, 0)
        return kept / (1 - rate) if self.scaled else kept

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = jnp.moveaxis(self.qkv(x).reshape(*x.shape[:2], 3, 2, 4), 2, 0)
        weights = jax.nn.softmax(jnp.einsum("bqhc,bkhc->bhqk", q, k) / 2, axis=-1)
        weights = self.dropped(weights, self.attention, *self.heads_share)
        y = jnp.einsum("bhqk,bkhc->bqhc", weights, v).reshape(x.shape)
        y = self.proj(self.dropped(y, self.rate)) if self.early else self.dropped(self.proj(y), self.rate)
        return x + self.dropped(self.dropped(y, self.depth, *self.depth_shares), self.extra)


class TorchRandom(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = TorchRandomBlock(), torch.nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(x))


class Random(nnx.Module):
    """Twin of `TorchRandom`."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.block, self.head = RandomBlock(rngs), nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.block(x))


_GENERIC: dict[str, tuple[type[torch.nn.Module], Callable[..., nnx.Module], tuple[int, ...]]] = {
    "convnet": (TorchConvNet, ConvNet, (2, 3, 8, 8)),
    "offset": (TorchOffset, Offset, (4, 64)),
    "resize": (TorchResize, Resize, (2, 3, 8, 8)),
    "dropout": (TorchDropout, Dropout, (2, 3, 8)),
    "random": (TorchRandom, Random, (3, 5, 8)),
}

PAIRS = (*FAMILIES, *_GENERIC, *FOREIGN)

_WRITTEN: dict[str, Architecture] = {**FOREIGN, **TWINS}

_TRAINED = {"convnet", "dropout", "random"}


def rules_of(name: str) -> Rules:
    """Return the rules that the pair needs in addition to the built-in ones."""
    return _WRITTEN[name].rules if name in _WRITTEN else Rules()


def trains(name: str) -> bool:
    """Return whether the pair differs in training mode and can be compared there."""
    return _WRITTEN[name].trains if name in _WRITTEN else name in _TRAINED


def make(name: str, seed: int = 0) -> Pair:
    """Create the pair `name` with weights and inputs drawn from `seed`."""
    if name in _WRITTEN:
        return _WRITTEN[name].make(seed)
    draw = np.random.RandomState(seed)
    if name in FAMILIES:
        model, sizes = FAMILIES[name]
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # frozen tensors keep their initial values
            torch_model, jax_model = make_pair(model, seed=seed, **sizes)
        return torch_model, jax_model, draw.standard_normal((2, 3, sizes["img_size"], sizes["img_size"]))
    torch_class, make_jax, shape = _GENERIC[name]
    torch_model, jax_model = torch_class(), make_jax(rngs=nnx.Rngs(0))
    randomize(torch_model, seed)
    torch_to_jax(torch_model, jax_model)
    # With 20 binary digits, sums of the offset pair's inputs are exact, and only their squares are not.
    return torch_model, jax_model, np.round(draw.standard_normal(shape) * 2**20) / 2**20


_cached = functools.cache(make)


def fresh(name: str) -> Pair:
    """Return the pair with seed 0; the JAX model is a copy that may be mutated."""
    torch_model, jax_model, inputs = _cached(name)
    return torch_model, nnx.clone(jax_model), inputs
