"""Either side may be the reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch.nn import functional as F

import parity
from parity import Report

X = np.random.RandomState(0).standard_normal((7, 6))


class TorchMlp(torch.nn.Module):
    def __init__(self, activation: Callable[..., Any]) -> None:
        super().__init__()
        self.up, self.down, self.activation = torch.nn.Linear(6, 16), torch.nn.Linear(16, 5), activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.activation(self.up(x)))


class JaxMlp(nnx.Module):
    def __init__(self, activation: Callable[..., Any]) -> None:
        rngs = nnx.Rngs(0)
        self.up, self.down = nnx.Linear(6, 16, rngs=rngs), nnx.Linear(16, 5, rngs=rngs)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(self.activation(self.up(x)))


def checked(ours: Callable[..., Any], theirs: Callable[..., Any], inputs: Any = X, **options: Any) -> Report:
    torch.manual_seed(0)
    torch_model, jax_model = TorchMlp(ours), JaxMlp(theirs)
    parity.torch_to_jax(torch_model, jax_model)
    return parity.check(torch_model, jax_model, inputs, **options)


def exact(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


@pytest.mark.parametrize("level", ["gradients", "train"])
def test_a_right_pair_is_equal_from_either_side(level: str) -> None:
    reports = [checked(F.gelu, exact, level=level, reference=side) for side in ("torch", "jax")]
    assert all(report.passed for report in reports), str(reports)
    assert [report.settings["reference"] for report in reports] == ["torch", "jax"]
    rows = [[row for row in report.rows if row.torch_error is not None] for report in reports]
    assert rows[0]
    for ours, theirs in zip(*rows, strict=True):
        assert (ours.name, ours.kind, ours.mode) == (theirs.name, theirs.kind, theirs.mode)
        assert (ours.error, ours.torch_error) == (theirs.torch_error, theirs.error), "the roles are exchanged"


def test_the_cause_is_said_for_pytorch_with_its_line() -> None:
    report = checked(lambda x: F.gelu(x), jax.nn.gelu, reference="jax")
    assert not report.passed
    (cause,) = report.causes
    assert cause.description.startswith(
        "PyTorch computes gelu where the reference computes tanh gelu (test_reference.py:"
    )
    assert report.verdict.endswith("; JAX is the reference")
    assert json.loads(report.to_json())["settings"]["reference"] == "jax"
    (usual,) = checked(lambda x: F.gelu(x), jax.nn.gelu).causes
    assert usual.description.startswith("gelu -> tanh gelu (test_reference.py:")


def far(x: Any) -> Any:
    """Return x with a large rounding error."""
    large = 60 * x * x
    return (x + large) - large


def test_in_float32_the_port_is_judged_and_the_reference_is_not() -> None:
    ours, theirs = (far, lambda x: x), (lambda x: x, far)
    passed = {
        (side, name): {row.kind for row in checked(*pair, reference=side).failures if row.mode in ("free", "forced")}
        for side in ("torch", "jax")
        for name, pair in (("torch is worse", ours), ("jax is worse", theirs))
    }
    assert passed["torch", "jax is worse"] >= {"output"}
    assert passed["jax", "torch is worse"] >= {"output"}
    assert not passed["torch", "torch is worse"]
    assert not passed["jax", "jax is worse"]


class FastNorm(torch.nn.LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(-1, keepdim=True)
        variance = (x * x).mean(-1, keepdim=True) - mean * mean
        return (x - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias


def test_what_is_wrong_in_float32_alone_has_no_cause_and_it_is_said() -> None:
    torch_model, jax_model = FastNorm(32), nnx.LayerNorm(32, epsilon=1e-5, use_fast_variance=False, rngs=nnx.Rngs(0))
    parity.torch_to_jax(torch_model, jax_model)
    inputs = 10 + np.random.RandomState(0).standard_normal((4, 16, 32))
    report = parity.check(torch_model, jax_model, inputs, level="forward", reference="jax")
    assert not report.passed
    assert {row.precision for row in report.failures} == {"float32"}
    assert not report.causes
    assert "causes in float32 alone are looked for only if PyTorch is the reference" in report.notes


def test_reduced_formats_are_judged_for_the_port() -> None:
    (ours,) = checked(F.gelu, exact, level="forward", formats=True, reference="jax").formats
    usual = checked(F.gelu, exact, level="forward", formats=True).formats[0]
    assert (ours.error, ours.torch_error) == (usual.torch_error, usual.error)
    assert ours.torch_error is not None
    assert ours.cap == 3 * ours.torch_error + 2**-9


def test_columns_have_the_right_names() -> None:
    text = str(checked(lambda x: F.gelu(x), jax.nn.gelu, level="forward", reference="jax"))
    heads = [line.split() for line in text.splitlines() if "PyTorch" in line and "JAX" in line]
    assert heads[0].index("PyTorch") < heads[0].index("JAX"), "the port first"


def test_no_other_side() -> None:
    with pytest.raises(ValueError, match="reference 'flax' is not one of torch, jax"):
        checked(F.gelu, exact, reference="flax")


def test_an_adapter_is_a_reference_too() -> None:
    torch_model = TorchMlp(F.gelu)
    params = {name: jnp.asarray(x.detach().numpy()) for name, x in torch_model.named_parameters()}

    def forward(p: Any, x: jax.Array) -> jax.Array:
        hidden = exact(x @ p["up.weight"].T + p["up.bias"][None])
        return hidden @ p["down.weight"].T + p["down.bias"][None]

    assert parity.check(torch_model, parity.function(forward, params), X, reference="jax").passed
