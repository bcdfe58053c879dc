"""What fails in float32 alone."""

from __future__ import annotations

import jax
import numpy as np
import torch
from flax import nnx

from parity import Rules, check, torch_to_jax
from parity.causes.precision.float32_only import name_single_causes
from parity.recording.capture import Call
from tests.support.parity.named import ROOT, Function, draw, pair


class Norm(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


class JaxNorm(nnx.Module):
    def __init__(self) -> None:
        self.norm = nnx.LayerNorm(32, epsilon=1e-5, use_fast_variance=True, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(x)


def test_a_fast_variance_that_only_float32_shows_is_named() -> None:
    torch_model, jax_model = Norm(), JaxNorm()
    torch_to_jax(torch_model, jax_model)
    x = 10 + np.random.RandomState(0).standard_normal((4, 16, 32))
    report = check(torch_model, jax_model, x, level="forward")
    failed = {row.precision for row in report.failures if row.mode == "forced"}
    assert failed == {"float32"}
    assert ("norm", "fast variance") in [(cause.module, cause.switch) for cause in report.causes]


def test_a_fast_variance_of_groups_and_channels_is_named() -> None:
    """Their errors have a factor and a sign of their own in every group, and an image has short rows."""
    options = {"epsilon": 1e-5, "use_fast_variance": True, "rngs": nnx.Rngs(0)}
    for ours, theirs in (
        (torch.nn.GroupNorm(4, 8), nnx.GroupNorm(8, num_groups=4, **options)),
        (torch.nn.InstanceNorm2d(8, affine=True), nnx.InstanceNorm(8, **options)),
    ):
        torch_model, jax_model = torch.nn.Sequential(ours), nnx.Sequential(theirs)
        rules = Rules(rename={r"^0\b": "layers.0"})
        torch_to_jax(torch_model, jax_model, rules=rules)
        x = 10 + np.random.RandomState(0).standard_normal((4, 8, 6, 6))
        report = check(torch_model, jax_model, x, rules=rules, level="forward")
        assert {row.precision for row in report.failures if row.mode == "forced"} == {"float32"}
        assert [cause.switch for cause in report.causes] == ["fast variance"], type(ours)


def test_a_short_format_inside_a_float32_model_is_named_and_noise_is_not() -> None:
    x = draw(4, 16, 8).float().double()
    module = Function(lambda x: torch.sin(x).exp())
    wrong = torch.sin(x).float().bfloat16().float().exp()
    shared = (module, (x,), [pair(module)], [pair(module)])
    (cause,) = name_single_causes(*shared, {ROOT: Call([], [wrong.numpy()])})
    assert cause.switch == "bfloat16 leak"
    noise = module(x).float() * (1 + 2.0**-9 * draw(4, 16, 8, seed=1).float())
    assert name_single_causes(*shared, {ROOT: Call([], [noise.numpy()])}) == ()


def test_complex_numbers_keep_their_imaginary_parts() -> None:
    """A short format is told from noise; numpy's warning of a dropped imaginary part would be an error here."""
    x = draw(4, 16, 8).float().double()
    module = Function(lambda x: torch.fft.fft(x * 1.0))
    shared = (module, (x,), [pair(module)], [pair(module)])
    (cause,) = name_single_causes(*shared, {ROOT: Call([], [torch.fft.fft(x.bfloat16().double()).numpy()])})
    assert cause.switch == "bfloat16 leak"
    noise = module(x) * (1 + 2.0**-9 * draw(4, 16, 8, seed=1).double())
    assert name_single_causes(*shared, {ROOT: Call([], [noise.numpy()])}) == ()
