"""The proof as a whole: what passes, what it says, what it refuses, and that it changes nothing."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from parity import Gates, Report, Rules, assert_parity, check, projection
from parity.carry.convert import jax_variables
from parity.proof.stages import Proof
from tests.support.parity.pairs import TorchTwice, carried, images, micro, resnet, text, twice

X, GATE = images(3, 6), images(3, 6, seed=2)


# ---- equal pairs ----


@pytest.mark.parametrize("seed", range(4))
def test_our_own_pair_passes(seed: int):
    report = check(*micro(seed), images(2, 3, 32, 32, seed=seed))
    assert report.passed, report
    assert report.first_divergence is None
    assert report.unpaired == ()


@pytest.mark.parametrize("level", ["gradients", "train"])
def test_a_residual_network_with_batch_norm_passes(level: str):
    """ReLU in place, `out += identity`, grouped convolutions: none of it ours."""
    rules = Rules(torch_only=["relu*"])
    torch_model, jax_model = resnet()
    if level == "train":  # flax keeps the biased variance, PyTorch the unbiased one
        report = check(torch_model, jax_model, images(2, 3, 16, 12), rules=rules, level=level)
        assert {row.name for row in report.failures} == {"bn1.running_var", "bn2.running_var"}
        assert report.first_divergence == "bn1"
        assert [(c.module, c.switch) for c in report.causes] == [
            ("bn1", "running variance"),
            ("bn2", "running variance"),
        ]
    else:
        assert_parity(torch_model, jax_model, images(2, 3, 16, 12), rules=rules, level=level)


@pytest.mark.parametrize("compiled", [True, False])
def test_two_inputs_and_a_layer_called_twice(compiled: bool):
    with jax.disable_jit(not compiled):
        report = assert_parity(*twice(), (X, GATE))
    assert [name for name, _ in report.layers] == ["fc", "fc#2", "norm", ""]
    gradients = {row.name for row in report.rows if row.kind == "gradient"}
    assert gradients == {"fc.weight", "fc.bias", "norm.weight", "norm.bias", "input 0", "input 1"}


def test_integers_as_input():
    report = assert_parity(*text(), np.array([[0, 3, 10], [1, 1, 1]]))
    assert "input 0" not in {row.name for row in report.rows}
    assert report.settings["loss"] == "random direction and curvature in every output"


@pytest.mark.parametrize("kind", ["torch", "jax", "list"])
def test_inputs_of_any_kind(kind: str):
    convert: dict[str, Any] = {"torch": torch.from_numpy, "jax": jnp.asarray, "list": np.asarray}
    inputs = [convert[kind](x.astype(np.float32)) for x in (X, GATE)]
    assert check(*twice(), inputs if kind == "list" else tuple(inputs), level="forward").passed


# ---- what is in a report ----


def test_every_layer_is_measured_in_every_mode():
    report = check(*twice(), (X, GATE))
    for name, _ in report.layers:
        kinds = {
            (row.mode, row.precision) for row in report.rows if row.name == name and row.kind in ("layer", "output")
        }
        assert kinds == {
            ("free", "float64"),
            ("forced", "float64"),
            ("free", "float32"),
            ("between", "float32"),
            ("forced", "float32"),
        }
    gates = Gates()
    for row in report.rows:
        if row.precision == "float64":
            assert row.gate <= (gates.f64_gradient if "gradient" in row.kind else gates.f64)
        elif row.torch_error is not None:
            floor = gates.f32_gradient_floor if "gradient" in row.kind else gates.f32_floor
            # The loss may stray as far as the outputs make it, of one number.
            limit = {"layer": gates.f32_between, "output": gates.f32_logits, "loss": gates.f32_logits}
            usual = 3 * row.torch_error + floor
            assert usual <= row.gate <= max(usual, limit.get(row.kind, gates.f32_between))


def test_rearrangements_are_held_to_every_bit():
    report = check(*micro(), images(2, 3, 32, 32), level="forward")
    forced = [row for row in report.rows if row.mode == "forced" and row.precision == "float64" and row.kind == "layer"]
    exact = {row.name for row in forced if row.gate == 0}
    assert {f"tokens_to_token.soft_split{i}" for i in range(3)} <= exact
    assert "blocks.0.attn.proj_drop" in exact
    assert not {"blocks.0.attn.qkv", "blocks.0.mlp.act"} & exact


def test_levels():
    kinds = {
        level: {row.kind for row in check(*twice(), (X, GATE), level=level).rows} for level in ("forward", "gradients")
    }
    assert kinds["forward"] == {"weights", "layer", "calls", "output"}
    assert kinds["gradients"] == kinds["forward"] | {"loss", "gradient", "activation gradient"}
    with pytest.raises(ValueError, match="level 'all' is not one of forward, gradients, train"):
        check(*twice(), (X, GATE), level="all")


def test_progress_and_settings():
    stages: list[str] = []
    report = check(*twice(), (X, GATE), progress=stages.append, loss=projection(seed=3))
    assert stages[0] == "weights and modules"
    assert "every layer" in stages
    assert report.settings["input_shapes"] == [[3, 6], [3, 6]]
    assert report.settings["loss"] == projection().name
    assert report.environment["versions"]["torch"]


def test_sections_change_no_figure(monkeypatch: pytest.MonkeyPatch):
    """A model too large to hold at once is judged in pieces, by the same figures."""
    whole = check(*micro(), images(2, 3, 32, 32), level="forward")
    monkeypatch.setattr(importlib.import_module("parity.proof.stages"), "SECTION_BYTES", 1_000_000)
    parts: list[str] = []
    pieces = check(*micro(), images(2, 3, 32, 32), level="forward", memory=0.0, progress=parts.append)
    assert any("part 2 of" in stage for stage in parts)
    assert pieces.passed

    def figures(report: Report) -> set[tuple[object, ...]]:
        return {(r.name, r.kind, r.mode, r.precision, r.gate) for r in report.rows if r.precision == "float64"}

    assert figures(pieces) == figures(whole)
    assert len(pieces.rows) == len(whole.rows)


def test_nothing_of_the_users_is_changed():
    torch_model, jax_model = twice()
    torch_model.train()
    before = copy.deepcopy(torch_model.state_dict())
    arrays = {name: np.asarray(v[...]).copy() for name, v in jax_variables(jax_model).items()}
    check(torch_model, jax_model, (X, GATE))
    assert torch_model.training
    assert all(p.grad is None for p in torch_model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in torch_model.state_dict().items())
    for name, variable in jax_variables(jax_model).items():
        np.testing.assert_array_equal(variable[...], arrays[name])
    assert not jax.config.jax_enable_x64


# ---- what cannot be compared ----


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_inputs_have_to_be_finite(bad: float):
    wrong = X.copy()
    wrong[1, 2] = bad
    with pytest.raises(ValueError, match="inputs hold NaN or infinity"):
        check(*twice(), (wrong, GATE))


@pytest.mark.parametrize("inputs", [(), (np.zeros((0, 6)), np.zeros((0, 6)))])
def test_inputs_have_to_be_there(inputs: tuple[np.ndarray, ...]):
    with pytest.raises(ValueError, match="inputs are empty"):
        check(*twice(), inputs)


def test_models_without_tensors_prove_nothing():
    class Nothing(nnx.Module):
        def __call__(self, x: jax.Array) -> jax.Array:
            return x

    with pytest.raises(ValueError, match="no tensor on either side"):
        check(torch.nn.Identity(), Nothing(), X)


def test_a_missing_bias_is_an_error():
    torch_model, jax_model = micro()
    jax_model.blocks[0].attn.proj.bias = nnx.data(None)
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.proj\.bias \[64\] of PyTorch has no partner"):
        check(torch_model, jax_model, images(2, 3, 32, 32))


def test_assert_parity_shows_the_report():
    torch_model, jax_model = twice()
    jax_model.norm.epsilon = 1e-6
    with pytest.raises(AssertionError, match="first divergence: norm"):
        assert_parity(torch_model, jax_model, (X, GATE), level="forward")
    assert isinstance(assert_parity(*twice(), (X, GATE), level="forward"), Report)


def test_stages_can_be_used_alone():
    proof = Proof.of(*twice(), (X, GATE), Rules(), Gates())
    assert all(row.passed for row in proof.forward64())
    assert {row.precision for row in proof.forward32()} == {"float32"}
    assert isinstance(proof.torch_side("float64").model, TorchTwice)


class TorchPick(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.argmax(-1, keepdim=True)


class TorchPicking(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(6, 6)
        self.pick = TorchPick()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc(x)
        return x * x.gather(-1, self.pick(x))


class FlaxPick(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return x.argmax(-1, keepdims=True)


class FlaxPicking(nnx.Module):
    def __init__(self) -> None:
        self.fc = nnx.Linear(6, 6, rngs=nnx.Rngs(0))
        self.pick = FlaxPick()

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.fc(x)
        return x * jnp.take_along_axis(x, self.pick(x), axis=-1)


def test_a_module_that_returns_integers_has_no_activation_gradient():
    report = check(*carried(TorchPicking(), nnx.eval_shape(FlaxPicking)), images(4, 6))
    assert report.passed
    assert {row.name for row in report.rows if row.kind == "activation gradient"} == {"", "fc"}
    assert "pick" in {row.name for row in report.rows if row.kind == "layer"}
