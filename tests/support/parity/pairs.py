"""Small pairs of models that are not ours, written as their users would, and how to make one of ours."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx

from parity import Rules, torch_to_jax
from parity.carry.random_weights import randomize
from t2t_parity.pair import make_pair


def micro(seed: int = 0, **arguments: object) -> tuple[torch.nn.Module, nnx.Module]:
    """Our smallest T2T-ViT with two blocks, for images of `micro_images`."""
    return make_pair("t2t_vit_micro", seed=seed, **{"img_size": 32, "num_classes": 10} | arguments)


def images(*shape: int, seed: int = 1) -> np.ndarray:
    """Standard normal numbers in float64, as PyTorch lays images out."""
    return np.random.RandomState(seed).standard_normal(shape)


def carried(
    torch_model: torch.nn.Module, jax_model: nnx.Module, rules: Rules | None = None
) -> tuple[torch.nn.Module, nnx.Module]:
    """The pair with the same random weights, none of them neutral. `jax_model` may be abstract, which is fast."""
    randomize(torch_model)
    torch_to_jax(torch_model, jax_model, rules=rules)
    return torch_model, jax_model


# ---- a residual network with BatchNorm, ReLU in place and `out += identity` ----


class TorchResNet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(8)
        self.conv = torch.nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(8)
        self.relu = torch.nn.ReLU(inplace=True)
        self.fc = torch.nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = self.relu(self.bn1(self.stem(x)))
        out = self.bn2(self.conv(identity))
        out += identity
        return self.fc(self.relu(out).mean(dim=(2, 3)))


class FlaxResNet(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        norm = {"momentum": 0.9, "epsilon": 1e-5, "rngs": rngs}
        self.stem = nnx.Conv(3, 8, (3, 3), strides=2, padding=1, use_bias=False, rngs=rngs)
        self.bn1 = nnx.BatchNorm(8, **norm)
        self.conv = nnx.Conv(8, 8, (3, 3), padding=1, feature_group_count=2, use_bias=False, rngs=rngs)
        self.bn2 = nnx.BatchNorm(8, **norm)
        self.fc = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        identity = jax.nn.relu(self.bn1(self.stem(x)))
        out = self.bn2(self.conv(identity)) + identity
        return self.fc(jax.nn.relu(out).mean(axis=(1, 2)))


def resnet() -> tuple[torch.nn.Module, nnx.Module]:
    return carried(TorchResNet(), nnx.eval_shape(FlaxResNet))


# ---- two inputs, one of them twice through the same layer ----


class TorchTwice(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(6, 6)
        self.norm = torch.nn.LayerNorm(6)

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return self.norm(self.fc(torch.tanh(self.fc(x))) * gate)


class FlaxTwice(nnx.Module):
    def __init__(self) -> None:
        self.fc = nnx.Linear(6, 6, rngs=nnx.Rngs(0))
        self.norm = nnx.LayerNorm(6, epsilon=1e-5, use_fast_variance=False, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array, gate: jax.Array) -> jax.Array:
        return self.norm(self.fc(jnp.tanh(self.fc(x))) * gate)


def twice() -> tuple[torch.nn.Module, nnx.Module]:
    return carried(TorchTwice(), nnx.eval_shape(FlaxTwice))


# ---- integers in, tokens out ----


class TorchText(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(11, 6)
        self.out = torch.nn.Linear(6, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.out(F.silu(self.embed(tokens)))


class FlaxText(nnx.Module):
    def __init__(self) -> None:
        self.embed = nnx.Embed(11, 6, rngs=nnx.Rngs(0))
        self.out = nnx.Linear(6, 4, rngs=nnx.Rngs(0))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.out(jax.nn.silu(self.embed(tokens)))


def text() -> tuple[torch.nn.Module, nnx.Module]:
    return carried(TorchText(), nnx.eval_shape(FlaxText))
