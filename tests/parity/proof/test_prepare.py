"""Tensors whose names do not correspond are paired by their values; what is not found is said, or fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx

import parity
from parity import Report, Rules
from parity.proof.prepare import paired_tensors

X = np.random.RandomState(0).standard_normal((3, 6)).astype(np.float32)
WEIGHTS = ["0.weight", "0.bias", "2.weight", "2.bias", "2.running_mean", "2.running_var", "3.weight", "3.bias"]
TENSORS_OF_NORM = ("weight", "bias", "running_mean", "running_var")


class Scaled(torch.nn.Module):
    """Multiplies by a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.linspace(1.0, 2.0, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.table


@pytest.fixture(autouse=True)
def _broadcasting() -> Iterator[None]:
    """Users broadcast over axes; the tests of our own models do not."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def torch_model() -> torch.nn.Module:
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), Scaled(), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 4))
    parity.randomize(model, seed=0)
    model[1].table = torch.linspace(1.0, 2.0, 5)
    return model.eval()


def params(model: torch.nn.Module) -> dict[str, Any]:
    """The weights under names of the port's own, the first layer in one array."""
    state = {name: x.numpy() for name, x in model.state_dict().items()}
    return {
        "first": np.concatenate([state["0.weight"].T, state["0.bias"][None]]),
        "norm": {key: state[f"2.{name}"] for key, name in zip("gbmv", TENSORS_OF_NORM, strict=True)},
        "last": {"w": state["3.weight"].T, "b": state["3.bias"]},
    }


def port(weights: Any, x: jax.Array) -> jax.Array:
    norm, last = weights["norm"], weights["last"]
    x = (x @ weights["first"][:-1] + weights["first"][-1]) * jnp.linspace(1.0, 2.0, 5)
    x = (x - norm["m"]) / jnp.sqrt(norm["v"] + 1e-5) * norm["g"] + norm["b"]
    return x @ last["w"] + last["b"]


def checked(model: torch.nn.Module, weights: Any, f: Callable[..., Any] = port, **options: Any) -> Report:
    return parity.check(model, parity.function(f, weights), X, **options)


def test_unlike_names_get_a_verdict(torch_model: torch.nn.Module):
    report = checked(torch_model, params(torch_model))
    assert report.passed, report
    assert sorted({entry.torch for entry in report.ledger}) == sorted(WEIGHTS)
    note = next(note for note in report.notes if note.startswith("tensors are paired by their values"))
    assert "since their names do not correspond (0.weight [5, 6] of PyTorch has no partner" in note
    assert "without a partner in JAX, which computes or lacks them: 1.table of PyTorch" in report.notes
    gradients = {row.name for row in report.rows if row.kind == "gradient"}
    assert {"0.weight", "3.bias"} <= gradients


@pytest.mark.parametrize(
    ("path", "name", "wrong"),
    [
        (("last", "w"), "3.weight", lambda w: w * np.float32(1.5)),
        (("norm", "m"), "2.running_mean", lambda m: m + np.float32(1)),
        (("norm", "v"), "2.running_var", lambda v: np.sqrt(v)),
    ],
)
def test_a_weight_with_other_values_fails(
    torch_model: torch.nn.Module, path: tuple[str, str], name: str, wrong: Callable[[np.ndarray], np.ndarray]
):
    weights = params(torch_model)
    weights[path[0]][path[1]] = wrong(weights[path[0]][path[1]])
    report = checked(torch_model, weights, level="forward")
    (row,) = [row for row in report.failures if row.kind == "weights"]
    assert row.name == name
    assert row.note.startswith("no tensor of JAX has its values")
    assert row.note.endswith(f"folded into one of {'.'.join(path)}")
    assert any(note.endswith(f"{'.'.join(path)} of JAX") for note in report.notes)


def test_a_table_of_jax_is_a_note(torch_model: torch.nn.Module):
    weights = params(torch_model) | {"angles": np.linspace(1, 2, 5, dtype=np.float32) ** 2}

    def f(weights: Any, x: jax.Array) -> jax.Array:
        return port({k: x for k, x in weights.items() if k != "angles"}, x)

    report = checked(torch_model, weights, f)
    assert report.passed, report
    assert "without a partner in PyTorch, so their gradients are not compared: angles of JAX" in report.notes


def test_weights_without_a_partner_can_be_told(torch_model: torch.nn.Module):
    torch_model.register_parameter("unused", torch.nn.Parameter(torch.arange(3.0)))
    adapter = parity.function(port, params(torch_model)).as_nnx()
    assert [row.name for row in paired_tensors(torch_model, adapter, Rules()).missing] == ["unused"]
    assert not paired_tensors(torch_model, adapter, Rules(torch_only=["unused"])).missing


def test_other_weights_are_an_error(torch_model: torch.nn.Module):
    """Most values are found nowhere: the weights were never carried over."""
    weights = jax.tree.map(lambda x: x + np.float32(1), params(torch_model))
    weights["last"] = params(torch_model)["last"]
    with pytest.raises(ValueError, match=r"(?s)tensors cannot be carried over:.*parity\.suggest_rules"):
        checked(torch_model, weights)


def test_zeros_and_ones_do_not_count():
    """The biases of two models that are not trained are equal, their weights are not."""
    model = torch.nn.Sequential(torch.nn.LayerNorm(6), torch.nn.Linear(6, 6))
    torch.nn.init.zeros_(model[1].bias)
    weights = {"g": np.ones(6), "b": np.zeros(6), "c": np.zeros(6), "w": np.random.RandomState(1).randn(6, 6)}
    weights = {name: x.astype(np.float32) for name, x in weights.items()}
    with pytest.raises(ValueError, match="tensors cannot be carried over"):
        checked(model, weights, lambda p, x: (x * p["g"] + p["b"]) @ p["w"] + p["c"])


class Last(torch.nn.Module):
    """The last output of a recurrent layer: (3, 6) as a sequence of one feature -> (3, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = torch.nn.RNN(1, 5, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(x[..., None])[0][:, -1]


@pytest.mark.parametrize("factor", [1.0, 1.001])
def test_a_sum_of_two_biases_is_one_tensor_in_jax(factor: float):
    model = Last()
    state = {name: x.detach().numpy() for name, x in model.rnn.named_parameters()}
    bias = ((state["bias_ih_l0"] + state["bias_hh_l0"]) * factor).astype(np.float32)
    weights = {"u": state["weight_ih_l0"].T, "v": state["weight_hh_l0"].T, "c": bias}

    def f(p: Any, x: jax.Array) -> jax.Array:
        h = jnp.zeros((3, 5), x.dtype)
        for step in range(6):
            h = jnp.tanh(x[:, step, None] @ p["u"] + h @ p["v"] + p["c"])
        return h

    before = model.rnn.bias_hh_l0.detach().clone()
    report = checked(model, weights, f)
    assert torch.equal(model.rnn.bias_hh_l0, before)
    assert report.passed == (factor == 1)
    if report.passed:
        assert any("rnn.bias_ih_l0 + rnn.bias_hh_l0 of PyTorch is one tensor in JAX, c" in x for x in report.notes)
        assert {"rnn.bias_ih_l0", "rnn.bias_hh_l0"} <= {row.name for row in report.rows if row.kind == "gradient"}
    else:
        rows = {row.name for row in report.failures if row.kind == "weights"}
        assert rows == {"rnn.bias_ih_l0", "rnn.bias_hh_l0"}


class Twin(nnx.Module):
    """The same names as in PyTorch, and one bias less."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.a, self.b = nnx.Linear(6, 6, rngs=rngs), nnx.Linear(6, 6, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.b(self.a(x))


class TorchCell(torch.nn.Module):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.cell: Any = kind(4, 5)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        found = self.cell(x, (h, h) if isinstance(self.cell, torch.nn.LSTMCell) else h)
        return found[0] if isinstance(found, tuple) else found


class LinenCell(linen.Module):
    kind: Any

    @linen.compact
    def __call__(self, x: jax.Array, h: jax.Array) -> jax.Array:
        cell = self.kind(5, name="cell")
        return cell((h, h) if self.kind is linen.OptimizedLSTMCell else h, x)[1]


@pytest.mark.parametrize("gate", [None, 0])
@pytest.mark.parametrize(
    ("kind", "linen_kind", "summed", "gates"),
    [(torch.nn.LSTMCell, linen.OptimizedLSTMCell, 20, "hi"), (torch.nn.GRUCell, linen.GRUCell, 10, "ir")],
)
def test_biases_that_a_port_has_added_under_equal_names(
    kind: Any, linen_kind: Any, summed: int, gates: str, gate: int | None
):
    """The rounded sum is right; with an error in one gate (`gate`) it is not. The user's model keeps its biases."""
    model = TorchCell(kind)
    parity.randomize(model)
    x, h = np.random.RandomState(0).standard_normal((3, 4)), np.random.RandomState(1).standard_normal((3, 5))
    added = TorchCell(kind)
    added.load_state_dict(model.state_dict())
    with torch.no_grad():
        added.cell.bias_ih[:summed] += added.cell.bias_hh[:summed]
        added.cell.bias_hh[:summed] = 0
    module = LinenCell(linen_kind)
    jax_model = parity.linen(module, module.init(jax.random.key(0), x, h))
    parity.torch_to_jax(added, jax_model)
    variables = jax.tree.map(lambda value: value, jax_model.variables)
    if gate is not None:
        variables["params"]["cell"][gates]["bias"] += 1e-3
    before = model.cell.bias_hh.detach().clone()
    report = parity.check(model, parity.linen(module, variables), (x, h))
    assert report.passed == (gate is None), str(report)
    assert torch.equal(model.cell.bias_hh, before)
    assert any("cell.bias_ih + cell.bias_hh: one tensor in JAX" in note for note in report.notes)


def test_a_missing_tensor_under_equal_names_is_an_error():
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x))

    model, twin = Model(), Twin()
    twin.a.kernel.set_value(jnp.asarray(model.a.weight.detach().numpy().T))
    twin.a.bias.set_value(jnp.asarray(model.a.bias.detach().numpy()))
    twin.b.kernel.set_value(jnp.asarray(model.b.weight.detach().numpy().T))
    with pytest.raises(ValueError, match=r"^1 tensors cannot be carried over: b.bias \[6\] of PyTorch has no partner"):
        parity.check(model, twin, X)


def test_rules_are_not_ignored(torch_model: torch.nn.Module):
    with pytest.raises(ValueError, match="tensors cannot be carried over"):
        checked(torch_model, params(torch_model), rules=Rules(rename={"^3$": "other"}))
