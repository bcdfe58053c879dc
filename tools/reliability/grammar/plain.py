"""Linear layers, activations, MLPs, gates, constants, buffers and dropout."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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
    array,
    linear,
    param,
    stop,
    streams,
)

ACTIVATIONS: dict[str, tuple[Callable[[], torch.nn.Module], Callable[[Any], Any], dict[str, Callable[[Any], Any]]]] = {
    "relu": (torch.nn.ReLU, jax.nn.relu, {"leaky": lambda x: jax.nn.leaky_relu(x, 0.01)}),
    "gelu": (torch.nn.GELU, lambda x: jax.nn.gelu(x, approximate=False), {"tanh form": jax.nn.gelu}),
    "gelu_tanh": (
        lambda: torch.nn.GELU(approximate="tanh"),
        jax.nn.gelu,
        {
            "erf form": lambda x: jax.nn.gelu(x, approximate=False),
            "sigmoid form": lambda x: x * jax.nn.sigmoid(1.702 * x),
        },
    ),
    "silu": (torch.nn.SiLU, jax.nn.silu, {"gelu": jax.nn.gelu}),
    "elu": (torch.nn.ELU, jax.nn.elu, {"alpha": lambda x: jax.nn.elu(x, 0.9)}),
    "celu": (lambda: torch.nn.CELU(0.5), lambda x: jax.nn.celu(x, 0.5), {"alpha": jax.nn.celu}),
    "selu": (torch.nn.SELU, jax.nn.selu, {"elu": jax.nn.elu}),
    "leaky_relu": (
        lambda: torch.nn.LeakyReLU(0.2),
        lambda x: jnp.where(x > 0, x, 0.2 * x),
        {"slope": jax.nn.leaky_relu},
    ),
    "relu6": (torch.nn.ReLU6, lambda x: jnp.where((x > 0) & (x < 6), x, 6.0 * (x > 0)), {"relu": jax.nn.relu}),
    "softplus": (torch.nn.Softplus, jax.nn.softplus, {"beta": lambda x: jax.nn.softplus(1.01 * x) / 1.01}),
    "softsign": (torch.nn.Softsign, jax.nn.soft_sign, {"tanh": jnp.tanh}),
    "tanh": (torch.nn.Tanh, jnp.tanh, {"hard": lambda x: jnp.clip(x, -1, 1)}),
    "sigmoid": (torch.nn.Sigmoid, jax.nn.sigmoid, {"hard": jax.nn.hard_sigmoid}),
    "log_sigmoid": (torch.nn.LogSigmoid, jax.nn.log_sigmoid, {"sign": lambda x: -jax.nn.softplus(x)}),
    "hardtanh": (torch.nn.Hardtanh, lambda x: jnp.where(jnp.abs(x) < 1, x, jnp.sign(x)), {"tanh": jnp.tanh}),
    "hardsigmoid": (torch.nn.Hardsigmoid, jax.nn.hard_sigmoid, {"sigmoid": jax.nn.sigmoid}),
    "hardswish": (torch.nn.Hardswish, jax.nn.hard_swish, {"swish": jax.nn.silu}),
    "mish": (torch.nn.Mish, jax.nn.mish, {"swish": jax.nn.silu}),
}
"""Name -> PyTorch's module, flax's function, and the functions that are taken for it by mistake.

Where a function has a kink the frameworks differ about its derivative, and one activation behind another meets kinks:
flax's has PyTorch's there.
"""


def function(name: str, wrong: str = "") -> Callable[[Any], Any]:
    """flax's function, or the one that `wrong` names ("activation: tanh form")."""
    _, right, others = ACTIVATIONS[name]
    return others.get(wrong.removeprefix("activation: "), right) if wrong.startswith("activation: ") else right


def others(name: str) -> tuple[str, ...]:
    return tuple(f"activation: {other}" for other in ACTIVATIONS[name][2])


@dataclasses.dataclass(frozen=True, repr=False)
class Linear(Node):
    kinds = (VECTOR, TOKENS)
    to: int = 4
    bias: bool = True

    def out(self, given: Format) -> Format:
        self.check(given)
        return given.with_channels(self.to)

    def mistakes(self, given: Format) -> tuple[str, ...]:
        biased = ("bias missing", "bias twice", "bias gradient stopped") if self.bias else ()
        return (*biased, *(("kernel transposed",) if given.channels == self.to > 1 else ()), "kernel gradient stopped")

    def build(self, given: Format) -> torch.nn.Module:
        return torch.nn.Linear(given.channels, self.to, bias=self.bias)

    def port(self, given: Format, twin: Any) -> nnx.Module:
        module: Any = linear(twin)
        if self.own:
            module.__class__, module.wrong = WrongLinear, self.own
        return module


class WrongLinear(nnx.Linear):
    wrong: str

    def __call__(self, x: jax.Array, out_sharding: Any = None) -> jax.Array:
        kernel, bias = self.kernel[...], None if self.bias is None else self.bias[...]
        kernel = {"kernel transposed": kernel.T, "kernel gradient stopped": stop(kernel)}.get(self.wrong, kernel)
        if bias is None or self.wrong == "bias missing":
            return x @ kernel
        bias = {"bias twice": 2 * bias, "bias gradient stopped": stop(bias)}.get(self.wrong, bias)
        return x @ kernel + bias


@dataclasses.dataclass(frozen=True, repr=False)
class Activation(Node):
    name: str = "relu"

    def mistakes(self, given: Format) -> tuple[str, ...]:
        return ("missing", *others(self.name))

    def build(self, given: Format) -> torch.nn.Module:
        return ACTIVATIONS[self.name][0]()


class FlaxActivation(FlaxHalf, of=Activation):
    def __call__(self, x: jax.Array) -> jax.Array:
        return x if self.wrong == "missing" else function(self.node.name, self.wrong)(x)


@dataclasses.dataclass(frozen=True, repr=False)
class Mlp(Node):
    """Two Linear layers and an activation that has no module in flax; gated (SwiGLU) if `gated`."""

    kinds = (VECTOR, TOKENS)
    hidden: int = 6
    name: str = "gelu"
    gated: bool = False

    def mistakes(self, given: Format) -> tuple[str, ...]:
        gates = ("gate and up exchanged", "gate missing") if self.gated else ()
        return (*gates, *others(self.name), "activation after the second layer")


class TorchMlp(TorchHalf, of=Mlp):
    def __init__(self, node: Mlp, given: Format) -> None:
        super().__init__(node, given)
        self.act = ACTIVATIONS[node.name][0]()
        self.fc1 = torch.nn.Linear(given.channels, node.hidden)
        self.up = torch.nn.Linear(given.channels, node.hidden, bias=False) if node.gated else None
        self.fc2 = torch.nn.Linear(node.hidden, given.channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.act(self.fc1(x))
        return self.fc2(hidden if self.up is None else hidden * self.up(x))


class FlaxMlp(FlaxHalf, of=Mlp):
    def __init__(self, node: Mlp, given: Format, twin: TorchMlp) -> None:
        super().__init__(node, given, twin)
        self.fc1, self.fc2 = linear(twin.fc1), linear(twin.fc2)
        self.up = None if twin.up is None else linear(twin.up)

    def __call__(self, x: jax.Array) -> jax.Array:
        wrong, act = self.wrong, function(self.node.name, self.wrong)
        if wrong == "activation after the second layer":
            return act(self.fc2(self.fc1(x) if self.up is None else self.fc1(x) * self.up(x)))
        if self.up is None or wrong == "gate missing":
            return self.fc2(act(self.fc1(x)))
        if wrong == "gate and up exchanged":
            return self.fc2(self.fc1(x) * act(self.up(x)))
        return self.fc2(act(self.fc1(x)) * self.up(x))


@dataclasses.dataclass(frozen=True, repr=False)
class Glu(Node):
    """The channels in two halves, one of which gates the other: no weights, functional in both frameworks."""

    wrongs = ("halves exchanged", "interleaved", "tanh")

    def out(self, given: Format) -> Format:
        self.check(given)
        if given.channels % 2:
            raise UnfitError(f"{given.channels} channels have no halves")
        return given.with_channels(given.channels // 2)


class TorchGlu(TorchHalf, of=Glu):
    def __init__(self, node: Glu, given: Format) -> None:
        super().__init__(node, given)
        self.axis = given.torch_axis

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.glu(x, self.axis)


class FlaxGlu(FlaxHalf, of=Glu):
    def __call__(self, x: jax.Array) -> jax.Array:
        wrong = self.wrong
        a, b = (x[..., ::2], x[..., 1::2]) if wrong == "interleaved" else jnp.split(x, 2, axis=-1)
        a, b = (b, a) if wrong == "halves exchanged" else (a, b)
        return a * (jnp.tanh(b) if wrong == "tanh" else jax.nn.sigmoid(b))


@dataclasses.dataclass(frozen=True, repr=False)
class Standardise(Node):
    """(x - mean) / deviation with constants per channel, written into the code."""

    wrongs = ("times the deviation", "mean after the division")


def _constants(channels: int) -> tuple[np.ndarray, np.ndarray]:
    steps = np.arange(channels, dtype=np.float64)
    return 0.25 + 0.125 * (steps % 3), 0.5 + 0.25 * (steps % 2)


class TorchStandardise(TorchHalf, of=Standardise):
    def __init__(self, node: Standardise, given: Format) -> None:
        super().__init__(node, given)
        shape = [-1] + [1] * (len(given.shape) - 1 if given.torch_axis == 1 else 0)
        self.constants = tuple(torch.from_numpy(c).reshape(shape) for c in _constants(given.channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, deviation = (c.to(x.dtype) for c in self.constants)
        return (x - mean) / deviation


class FlaxStandardise(FlaxHalf, of=Standardise):
    def __call__(self, x: jax.Array) -> jax.Array:
        mean, deviation = (jnp.asarray(c, x.dtype) for c in _constants(x.shape[-1]))
        if self.wrong == "times the deviation":
            return (x - mean) * deviation
        if self.wrong == "mean after the division":
            return x / deviation - mean
        return (x - mean) / deviation


@dataclasses.dataclass(frozen=True, repr=False)
class Buffers(Node):
    """Channels in the order of an int64 buffer, plus a buffer of floats."""

    kinds = (VECTOR, TOKENS)

    def mistakes(self, given: Format) -> tuple[str, ...]:
        return (*(("order inverted", "order ignored") if given.channels > 2 else ()), "offset negated")


class TorchBuffers(TorchHalf, of=Buffers):
    order: torch.Tensor
    offset: torch.Tensor

    def __init__(self, node: Buffers, given: Format) -> None:
        super().__init__(node, given)
        self.register_buffer("order", torch.arange(given.channels).roll(1))
        self.register_buffer("offset", torch.randn(given.channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., self.order] + self.offset


class FlaxBuffers(FlaxHalf, of=Buffers):
    def __init__(self, node: Buffers, given: Format, twin: TorchBuffers) -> None:
        super().__init__(node, given, twin)
        self.order = nnx.Variable(jnp.asarray(array(twin.order), jnp.int32))
        self.offset = nnx.Variable(jnp.asarray(array(twin.offset)))

    def __call__(self, x: jax.Array) -> jax.Array:
        order, wrong = self.order[...], self.wrong
        order = {"order inverted": jnp.argsort(order), "order ignored": jnp.sort(order)}.get(wrong, order)
        return x[..., order] + (-1 if wrong == "offset negated" else 1) * self.offset[...]


@dataclasses.dataclass(frozen=True, repr=False)
class Dropout(Node):
    """As a module or as a function in PyTorch, always nnx.Dropout in flax; of whole rows per batch item if `path`."""

    rate: float = 0.5
    functional: bool = False
    path: bool = False

    def mistakes(self, given: Format) -> tuple[str, ...]:
        return "rate", "forgotten", *(() if self.path else ("one draw for all channels",))

    def build(self, given: Format) -> torch.nn.Module:
        return TorchDropout(self) if self.functional or self.path else torch.nn.Dropout(self.rate)

    def port(self, given: Format, twin: Any) -> nnx.Module:
        dropout = self._dropout(len(given.shape))
        return FlaxDropout(dropout) if self.functional else dropout

    def _dropout(self, rank: int) -> nnx.Dropout:
        rate = {"rate": self.rate / 2 + 0.05, "forgotten": 0.0}.get(self.own, self.rate)
        axes = tuple(range(1, rank + 1)) if self.path else (-1,) if self.own == "one draw for all channels" else ()
        return nnx.Dropout(rate, broadcast_dims=axes, rngs=streams())


class TorchDropout(torch.nn.Module):
    """Functional dropout, or drop path as in timm (`drop_prob`)."""

    def __init__(self, node: Dropout) -> None:
        super().__init__()
        self.drop_prob, self.path = node.rate, node.path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.path:
            return F.dropout(x, self.drop_prob, self.training)
        if not self.training or self.drop_prob == 0:
            return x
        keep = 1 - self.drop_prob
        return x * x.new_empty((x.shape[0], *[1] * (x.ndim - 1))).bernoulli_(keep) / keep


class FlaxDropout(nnx.Module):
    def __init__(self, dropout: nnx.Dropout) -> None:
        self.dropout = dropout

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.dropout(x)


@dataclasses.dataclass(frozen=True, repr=False)
class Scale(Node):
    """A learned factor per channel, zero as in LayerScale or ReZero if `zero`."""

    kinds = (VECTOR, TOKENS)
    wrongs = ("1 + scale", "square", "scale gradient stopped")
    zero: bool = False


class TorchScale(TorchHalf, of=Scale):
    def __init__(self, node: Scale, given: Format) -> None:
        super().__init__(node, given)
        self.gamma = torch.nn.Parameter((torch.zeros if node.zero else torch.randn)(given.channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


class FlaxScale(FlaxHalf, of=Scale):
    def __init__(self, node: Scale, given: Format, twin: TorchScale) -> None:
        super().__init__(node, given, twin)
        self.gamma = param(twin.gamma)

    def __call__(self, x: jax.Array) -> jax.Array:
        gamma = self.gamma[...]
        wrong = {"1 + scale": 1 + gamma, "square": gamma**2, "scale gradient stopped": stop(gamma)}
        return x * wrong.get(self.wrong, gamma)
