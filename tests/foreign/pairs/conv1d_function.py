"""WaveNet's gated causal convolutions: PyTorch (B, C, T); JAX as functions over a pytree, (B, T, C).

Shapes: B signals, T samples, C channels, S channels of the skip connections.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import torch
import torch.nn.functional as F

from tests.foreign.pairs.common import Bug, ForeignPair, Side, array, channels_last, normal, randomize

C, S, OUT, T, DILATIONS = 6, 5, 4, 11, (1, 2, 4)


class CausalConv1d(torch.nn.Conv1d):
    """Sees the present and the past only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(x, ((self.kernel_size[0] - 1) * self.dilation[0], 0)))


class ResidualBlock(torch.nn.Module):
    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.conv = CausalConv1d(C, 2 * C, 3, dilation=dilation)
        self.residual, self.skip = torch.nn.Conv1d(C, C, 1), torch.nn.Conv1d(C, S, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        signal, gate = self.conv(x).chunk(2, dim=1)
        y = torch.tanh(signal) * torch.sigmoid(gate)
        return (x + self.residual(y)) * 0.5**0.5, self.skip(y)


class TorchWaveNet(torch.nn.Module):
    """(B, 2, T) -> (B, OUT, T)."""

    def __init__(self) -> None:
        super().__init__()
        self.input = CausalConv1d(2, C, 2)
        self.blocks = torch.nn.ModuleList([ResidualBlock(dilation) for dilation in DILATIONS])
        self.output = torch.nn.Sequential(
            torch.nn.ReLU(), torch.nn.Conv1d(S, S, 1), torch.nn.ReLU(), torch.nn.Conv1d(S, OUT, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.input(x)
        skips = []
        for block in self.blocks:
            x, skip = block(x)
            skips.append(skip)
        return self.output(torch.stack(skips).sum(0))


Params = dict[str, Any]


def causal(p: Params, x: jax.Array, dilation: int = 1, late: int = 0) -> jax.Array:
    """Convolution whose kernel ends at the present, or `late` samples after it."""
    past = (p["w"].shape[0] - 1) * dilation
    y = jax.lax.conv_general_dilated(
        x, p["w"], (1,), [(past - late, late)], rhs_dilation=(dilation,), dimension_numbers=("NWC", "WIO", "NWC")
    )
    return y + p["b"]


def pointwise(p: Params, x: jax.Array) -> jax.Array:
    return x @ p["w"] + p["b"]


def wavenet(params: Params, x: jax.Array, *, bug: str = "") -> jax.Array:
    x = causal(params["enter"], x)
    total: jax.Array | float = 0.0
    for i, (p, dilation) in enumerate(zip(params["layers"], DILATIONS, strict=True)):
        here = bug if i == 1 else ""
        z = causal(p["dilated"], x, dilation, late=1 if here == "shifted" else 0)  # bug: shifted
        gate, signal = (z[..., :C], z[..., C:]) if here == "gate_and_signal" else (z[..., C:], z[..., :C])
        y = jnp.tanh(signal) * jax.nn.sigmoid(gate)  # bug: gate_and_signal
        total = total + pointwise(p["skip"], y)
        x = (x + pointwise(p["residual"], y)) * (1.0 if here == "not_rescaled" else 0.5**0.5)  # bug: not_rescaled
    y = jax.nn.relu(pointwise(params["head1"], jax.nn.relu(total)))
    return pointwise(params["head2"], y)


def converted(model: Any) -> Params:
    def conv(layer: Any) -> Params:
        return {"w": jnp.asarray(channels_last(layer.weight)), "b": jnp.asarray(array(layer.bias))}

    def dense(layer: Any) -> Params:
        return {"w": conv(layer)["w"][0], "b": conv(layer)["b"]}

    layers = [
        {"dilated": conv(block.conv), "residual": dense(block.residual), "skip": dense(block.skip)}
        for block in model.blocks
    ]
    heads = {"head1": dense(model.output[1]), "head2": dense(model.output[3])}
    return {"enter": conv(model.input), "layers": layers, **heads}


def side(model: Any, bug: str) -> Side:
    port = functools.partial(wavenet, bug=bug)
    return Side("function", port, converted(model), takes=((0, 2, 1),), returns=(0, 2, 1))


PAIR = ForeignPair(
    name="conv1d_function",
    file=__file__,
    torch_model=lambda seed: randomize(TorchWaveNet(), seed),
    jax_side=side,
    inputs=lambda seed: (normal(seed, 3, 2, T),),
    bugs={
        "shifted": Bug(("blocks.1.conv",)),
        "gate_and_signal": Bug(("blocks.1",)),
        "not_rescaled": Bug(("blocks.1",)),
    },
)
