"""Mistakes with gates, experts, soft caps, norms, activations, channels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from parity.causes import name_causes
from parity.measure.gates import Row
from parity.pairing.match_calls import Pair
from parity.recording.capture import Call
from tests.support.parity.named import ROOT, Function, Tensor, cause_of, double, draw, pair

X, IMAGE = draw(2, 5, 8), draw(2, 8, 6, 6)
W = draw(8, seed=7)


def experts(x: Tensor) -> Tensor:
    p = x.softmax(-1)
    values, index = p.topk(2, -1)
    values = values / values.sum(-1, keepdim=True)
    return torch.zeros_like(x).scatter(-1, index, values) * W


def chosen_first(x: Tensor) -> Tensor:
    values, index = x.topk(2, -1)
    return torch.zeros_like(x).scatter(-1, index, values.softmax(-1)) * W


def not_renormalised(x: Tensor) -> Tensor:
    values, index = x.softmax(-1).topk(2, -1)
    return torch.zeros_like(x).scatter(-1, index, values) * W


class Gemma(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(W.clone())

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


class Llama(Gemma):
    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def rms(x: Tensor, eps: float = 1e-6) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


RMS = torch.nn.RMSNorm(8, eps=1e-6).double()
RMS.weight.data.copy_(W)
INSTANCE = torch.nn.InstanceNorm2d(8, affine=True).double()
INSTANCE.weight.data.copy_(W)
UP = torch.nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1, output_padding=1).double()
DILATED = torch.nn.Conv2d(8, 4, 3, padding=2, dilation=2).double()
STRIDED = torch.nn.Conv2d(8, 4, 3, padding=1, stride=2).double()
PIXELS = draw(2, 8, 3, 3)
BASE = Function

Case = tuple[torch.nn.Module, Tensor, Callable[[Tensor], Tensor], str]
CASES: dict[str, Case] = {
    "swiglu, gate and up": (
        BASE(lambda x: F.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1]),
        X,
        lambda x: F.silu(x.chunk(2, -1)[1]) * x.chunk(2, -1)[0],
        "gate and up",
    ),
    "swiglu of two products, gate and up": (
        BASE(lambda x: F.silu(x * W) * x.flip(-1)),
        X,
        lambda x: F.silu(x.flip(-1)) * (x * W),
        "gate and up",
    ),
    "glu": (torch.nn.GLU(-1), X, lambda x: x[..., 4:] * x[..., :4].sigmoid(), "gate and up"),
    "geglu for swiglu": (BASE(lambda x: F.silu(x) * W), X, lambda x: F.gelu(x) * W, "activation"),
    "experts not renormalised": (BASE(experts), X, not_renormalised, "renormalisation"),
    "experts renormalised": (BASE(not_renormalised), X, experts, "renormalisation"),
    "softmax of all experts": (BASE(chosen_first), X, not_renormalised, "order of softmax and top-k"),
    "soft cap": (BASE(lambda x: 30.0 * torch.tanh(9 * x / 30.0)), X, lambda x: 9 * x, "soft cap"),
    "another soft cap": (
        BASE(lambda x: 3.0 * torch.tanh(9 * x / 3.0)),
        X,
        lambda x: 5.0 * torch.tanh(9 * x / 5.0),
        "soft cap",
    ),
    "1 + scale missing": (Gemma(), X, lambda x: rms(x) * W, "1 + scale"),
    "1 + scale": (Llama(), X, lambda x: rms(x) * (1 + W), "1 + scale"),
    "1 + scale in a module": (RMS, X, lambda x: rms(x) * (1 + W), "1 + scale"),
    "eps of an RMS norm": (Gemma(), X, lambda x: rms(x, 1e-5) * (1 + W), "epsilon"),
    "a strange eps": (RMS, X, lambda x: rms(x, 3.7e-4) * W, "epsilon"),
    "instance norm without scale": (INSTANCE, IMAGE, lambda x: F.instance_norm(x), "scale"),
    "slope": (torch.nn.LeakyReLU(0.01), X, lambda x: F.leaky_relu(x, 0.2), "activation"),
    "a strange slope": (torch.nn.LeakyReLU(0.01), X, lambda x: F.leaky_relu(x, 0.137), "activation"),
    "beta": (torch.nn.Softplus(), X, lambda x: F.softplus(x, beta=2), "activation"),
    "residual scaled": (BASE(lambda x: x + torch.tanh(x)), X, lambda x: x + 0.7 * torch.tanh(x), "residual"),
    "embedding scaled": (BASE(lambda x: torch.sin(x)), X, lambda x: torch.sin(x) * 8**0.5, "scale"),
    "bias of the head": (BASE(lambda x: F.linear(x, draw(3, 8), W[:3])), X, lambda x: x @ draw(3, 8).T, "bias"),
    "pixel shuffle": (
        torch.nn.PixelShuffle(2),
        PIXELS,
        lambda x: x.unflatten(1, (2, 2, 2)).permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3),
        "channel order",
    ),
    "cumsum": (BASE(lambda x: x.cumsum(1)), X, lambda x: x.flip(1).cumsum(1).flip(1), "direction"),
    "flip": (BASE(lambda x: torch.tanh(x).flip(1)), X, lambda x: torch.tanh(x).flip(2), "direction"),
    "groups shuffled": (
        torch.nn.ChannelShuffle(2),
        IMAGE,
        lambda x: x.unflatten(1, (4, 2)).transpose(1, 2).flatten(1, 2),
        "channel order",
    ),
    "dilation": (DILATED, IMAGE, lambda x: F.conv2d(x, DILATED.weight, DILATED.bias, padding=1), "dilation"),
    "padding SAME at even sizes": (
        STRIDED,
        IMAGE,
        lambda x: F.conv2d(F.pad(x, (0, 1, 0, 1)), STRIDED.weight, STRIDED.bias, 2),
        "padding",
    ),
    "transposed convolution, flipped": (
        UP,
        IMAGE,
        lambda x: F.conv_transpose2d(x, UP.weight.flip(2, 3), UP.bias, 2, 1, 1),
        "kernel flipped",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_mistake_is_named(name: str) -> None:
    module, x, wrong, switch = CASES[name]
    cause = cause_of(module.double(), x, wrong(x))
    assert cause is not None
    assert cause.switch == switch, cause
    assert cause.error_after <= 1e-13


class SwiGLU(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.act = torch.nn.Linear(8, 6), torch.nn.Linear(8, 6), torch.nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.gate(x)) * self.up(x)


def test_gate_and_up_of_two_modules_exchanged_are_named() -> None:
    module = double(SwiGLU())
    pairs: list[Pair] = [pair(getattr(module, name), (name, 0)) for name in ("gate", "act", "up")] + [pair(module)]
    gate, up = module.gate(X).detach(), module.up(X).detach()
    calls = {
        ("act", 0): Call([up.numpy()], [F.silu(gate).numpy()]),
        ROOT: Call([X.numpy()], [(F.silu(gate) * gate).numpy()]),
    }
    rows = [Row("act", "calls", "forced", "float64", 1.0, 1e-13), Row("", "output", "forced", "float64", 1.0, 1e-13)]
    (cause,) = name_causes(module, (X,), pairs, calls, rows)
    assert cause.switch == "branches exchanged"
    assert "gate and up" in cause.description
