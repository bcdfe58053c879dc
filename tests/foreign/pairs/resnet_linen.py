"""ResNet with BatchNorm: PyTorch as in torchvision; Linen with running statistics updated as PyTorch does.

Shapes: B images, C channels, h w pixels, K classes.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import torch

from tests.foreign.pairs.common import Bug, ForeignPair, Side, array, conv, dense, norm, normal, randomize

WIDTHS, BLOCKS, K = (6, 10), 2, 5


class BasicBlock(torch.nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.bn1, self.relu = torch.nn.BatchNorm2d(outside), torch.nn.ReLU(inplace=True)
        self.conv2 = torch.nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(outside)
        self.downsample = None
        if stride != 1 or inside != outside:
            shortcut = torch.nn.Conv2d(inside, outside, 1, stride, bias=False)
            self.downsample = torch.nn.Sequential(shortcut, torch.nn.BatchNorm2d(outside))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class TorchResNet(torch.nn.Module):
    """(B, 3, h, w) -> (B, K)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, WIDTHS[0], 7, 2, padding=3, bias=False)
        self.bn1, self.relu = torch.nn.BatchNorm2d(WIDTHS[0]), torch.nn.ReLU(inplace=True)
        self.maxpool = torch.nn.MaxPool2d(3, 2, padding=1)
        inside = WIDTHS[0]
        for i, width in enumerate(WIDTHS):
            strides = [2 if i else 1] + [1] * (BLOCKS - 1)
            blocks = [BasicBlock(width if j else inside, width, stride) for j, stride in enumerate(strides)]
            self.add_module(f"layer{i + 1}", torch.nn.Sequential(*blocks))
            inside = width
        self.avgpool, self.fc = torch.nn.AdaptiveAvgPool2d((1, 1)), torch.nn.Linear(inside, K)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for i in range(len(WIDTHS)):
            x = self.get_submodule(f"layer{i + 1}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


class BatchNorm(nn.Module):
    """Over all axes but the last, with an unbiased running variance, which `nn.BatchNorm` lacks."""

    bug: str = ""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        width = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        ra_mean = self.variable("batch_stats", "mean", jnp.zeros, (width,))
        ra_var = self.variable("batch_stats", "var", jnp.ones, (width,))
        mean, var = ra_mean.value, ra_var.value
        if train:
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            count = x.size // width
            momentum = 0.1 if self.bug == "momentum" else 0.9
            unbiased = var if self.bug == "biased_variance" else var * count / (count - 1)
            ra_mean.value = momentum * ra_mean.value + (1 - momentum) * mean  # bug: momentum
            ra_var.value = momentum * ra_var.value + (1 - momentum) * unbiased  # bug: biased_variance
        eps = 1e-3 if self.bug == "bn_eps" else 1e-5
        return (x - mean) * jax.lax.rsqrt(var + eps) * scale + bias  # bug: bn_eps


class Residual(nn.Module):
    width: int
    stride: int
    bug: str = ""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        padding: Any = "SAME" if self.bug == "same_padding" else 1
        y = nn.Conv(self.width, (3, 3), self.stride, padding, use_bias=False, name="conv1")(x)  # bug: same_padding
        y = nn.relu(BatchNorm(name="bn1")(y, train))
        y = nn.Conv(self.width, (3, 3), padding=1, use_bias=False, name="conv2")(y)
        y = BatchNorm(self.bug, name="bn2")(y, train)
        if x.shape != y.shape:
            x = nn.Conv(self.width, (1, 1), self.stride, use_bias=False, name="conv0")(x)
            x = BatchNorm(name="bn0")(x, train)
        return nn.relu(y) + x if self.bug == "relu_before_add" else nn.relu(y + x)  # bug: relu_before_add


class ResNet(nn.Module):
    bug: str = ""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Conv(WIDTHS[0], (7, 7), 2, padding=3, use_bias=False, name="stem")(x)
        x = nn.relu(BatchNorm(name="stem_bn")(x, train))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for i, width in enumerate(WIDTHS):
            for j in range(BLOCKS):
                bug = self.bug if (i, j) == BUGGY_BLOCK.get(self.bug, (1, 1)) else ""
                x = Residual(width, 2 if i and not j else 1, bug, name=f"stage{i}_{j}")(x, train)
        return nn.Dense(K, name="head")(x.mean((1, 2)))


BUGGY_BLOCK = {"same_padding": (1, 0)}


def torch_names() -> dict[str, str]:
    """The module of PyTorch for every BatchNorm of the port."""
    names = {"stem_bn": "bn1"}
    for i in range(len(WIDTHS)):
        for j in range(BLOCKS):
            here = f"layer{i + 1}.{j}"
            names |= {f"stage{i}_{j}/bn1": f"{here}.bn1", f"stage{i}_{j}/bn2": f"{here}.bn2"}
            if i and not j:
                names[f"stage{i}_{j}/bn0"] = f"{here}.downsample.1"
    return names


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *folders, name = path.split("/")
        here = tree
        for folder in folders:
            here = here.setdefault(folder, {})
        here[name] = value
    return tree


def converted(model: Any) -> dict[str, Any]:
    modules = dict(model.named_modules())
    params = {name: norm(modules[other]) for name, other in torch_names().items()}
    stats = {
        name: {
            "mean": jnp.asarray(array(modules[other].running_mean)),
            "var": jnp.asarray(array(modules[other].running_var)),
        }
        for name, other in torch_names().items()
    }
    params |= {"stem": conv(model.conv1), "head": dense(model.fc)}
    for i in range(len(WIDTHS)):
        for j in range(BLOCKS):
            block = modules[f"layer{i + 1}.{j}"]
            params |= {f"stage{i}_{j}/conv1": conv(block.conv1), f"stage{i}_{j}/conv2": conv(block.conv2)}
            if block.downsample is not None:
                params[f"stage{i}_{j}/conv0"] = conv(block.downsample[0])
    return {"params": nested(params), "batch_stats": nested(stats)}


def side(model: Any, bug: str) -> Side:
    port = ResNet(bug)

    def train(variables: Any, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        y, new = port.apply(variables, x, train=True, mutable=["batch_stats"])
        statistics: dict[str, jax.Array] = {}
        for name, other in torch_names().items():
            here: Any = new["batch_stats"]
            for part in name.split("/"):
                here = here[part]
            statistics |= {f"{other}.running_mean": here["mean"], f"{other}.running_var": here["var"]}
        return y, statistics

    return Side("linen", port, converted(model), kwargs={"train": False}, takes=((0, 2, 3, 1),), train=train)


PAIR = ForeignPair(
    name="resnet_linen",
    file=__file__,
    torch_model=lambda seed: randomize(TorchResNet(), seed),
    jax_side=side,
    inputs=lambda seed: (normal(seed, 4, 3, 24, 32),),
    bugs={
        "same_padding": Bug(("layer2.0.conv1",)),
        "bn_eps": Bug(("layer2.1.bn2",)),
        "relu_before_add": Bug(("layer2.1", "layer2.1.relu")),
        "momentum": Bug(("layer2.1.bn2",), training=True),
        "biased_variance": Bug(("layer2.1.bn2",), training=True),
    },
)
