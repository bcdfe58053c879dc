"""Functions of a pytree: names, layouts that the shapes or the names decide, and what is no such function."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import parity
from parity import LeafRule, Rules
from parity.adapters import Program
from tests.support.parity.layers import assert_the_same_layer
from tests.support.parity.pairs import images


@pytest.fixture(autouse=True)
def _broadcasting() -> Iterator[None]:
    """Users broadcast over axes; the tests of our own models do not."""
    with jax.numpy_rank_promotion("allow"):
        yield


class Mlp(torch.nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.fc1, self.norm, self.fc2 = torch.nn.Linear(4, width), torch.nn.LayerNorm(width), torch.nn.Linear(width, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.norm(torch.tanh(self.fc1(x))))


def norm(params: Any, x: jax.Array) -> jax.Array:
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * params["scale"] + params["b"]


def mlp(params: Any, x: jax.Array) -> jax.Array:
    x = jnp.tanh(x @ params["fc1"]["w"] + params["fc1"]["b"])
    return norm(params["norm"], x) @ params["fc2"]["w"] + params["fc2"]["b"]


def in_torch_layout(params: Any, x: jax.Array) -> jax.Array:
    x = jnp.tanh(x @ params["fc1"]["weight"].T + params["fc1"]["bias"])
    return norm(params["norm"], x) @ params["fc2"]["weight"].T + params["fc2"]["bias"]


def zeros(w: str = "w", b: str = "b", width: int = 8, *, transposed: bool = False) -> Any:
    shapes = [(4, width), (width, 8)]
    first, second = (np.zeros(shape[::-1] if transposed else shape, np.float32) for shape in shapes)
    bias = np.zeros(8, np.float32)
    one = np.zeros(width, np.float32)
    return {"fc1": {w: first, b: one}, "norm": {"scale": one, "b": one}, "fc2": {w: second, b: bias}}


def test_a_function_is_carried_both_ways_and_computes_the_same():
    ledger = assert_the_same_layer(Mlp(), parity.function(mlp, zeros()), [images(5, 4).astype(np.float32)])
    assert [entry.jax for entry in ledger if entry.torch.startswith("fc1")] == ["fc1.w", "fc1.b"]


def test_a_check_of_a_function_finds_a_wrong_epsilon_and_its_cause():
    def wrong(params: Any, x: jax.Array) -> jax.Array:
        x = jnp.tanh(x @ params["fc1"]["w"] + params["fc1"]["b"])
        x = x - x.mean(-1, keepdims=True)
        x = x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * params["norm"]["scale"] + params["norm"]["b"]
        return x @ params["fc2"]["w"] + params["fc2"]["b"]

    torch_model, x = Mlp(12), images(5, 4)
    parity.randomize(torch_model)
    right, other = parity.function(mlp, zeros(width=12)), parity.function(wrong, zeros(width=12))
    for adapter in (right, other):
        parity.torch_to_jax(torch_model, adapter)
    report = parity.assert_parity(torch_model, right, x)
    assert [row.kind for row in report.rows].count("gradient") >= 2 * 7  # six parameters and the input, twice
    assert report.notes == ()
    assert {"fc1", "norm", "fc2"} <= {name for name, _ in report.layers}
    report = parity.check(torch_model, other, x)
    assert not report.passed
    assert report.causes[0].switch == "epsilon"


def test_a_square_matrix_is_decided_by_its_name_and_said():
    """Without one that is not square, `w` is (in, out) and `weight` PyTorch's layout."""
    torch_model = torch.nn.Linear(5, 5)
    parity.randomize(torch_model)
    for name, turned in (("w", True), ("kernel", True), ("weight", False)):
        adapter = parity.function(lambda p, x: x, {name: np.zeros((5, 5), np.float32), "b": np.zeros(5, np.float32)})
        ledger = parity.torch_to_jax(torch_model, adapter)
        weight = torch_model.weight.detach().numpy()
        np.testing.assert_array_equal(adapter.params[name], weight.T if turned else weight)
        assert f"by the name {name}" in ledger.notes[0]
        told = {True: f"LeafRule('weight', '{name}')", False: f"LeafRule('weight', '{name}', (1, 0))"}[turned]
        assert told in ledger.notes[0]
        other = Rules(leaves={Program: (LeafRule("weight", name, None if turned else (1, 0)),)})
        ledger = parity.torch_to_jax(torch_model, adapter, rules=other)
        np.testing.assert_array_equal(adapter.params[name], weight if turned else weight.T)
        assert not ledger.notes


def test_matrices_that_are_not_square_decide_the_square_ones_of_the_same_name():
    """`w` in PyTorch's layout."""
    adapter = parity.function(in_torch_layout, zeros("weight", "bias", transposed=True))
    assert_the_same_layer(Mlp(), adapter, [images(5, 4).astype(np.float32)])

    def turned(params: Any, x: jax.Array) -> jax.Array:
        return mlp({k: v | {"w": v["w"].T} if "w" in v else v for k, v in params.items()}, x)

    ledger = assert_the_same_layer(
        Mlp(), parity.function(turned, zeros(transposed=True)), [images(5, 4).astype(np.float32)]
    )
    assert "fc2.weight" in ledger.notes[0]
    assert "as it is" in ledger.notes[0]


@pytest.mark.parametrize("spatial", [1, 2, 3])
@pytest.mark.parametrize("in_out", [True, False])
def test_kernels(spatial: int, in_out: bool):
    shape = (2, 3, *range(4, 4 + spatial))
    torch_layer = getattr(torch.nn, f"Conv{spatial}d")(2, 3, shape[2:])
    jax_shape = (*shape[2:], 2, 3) if in_out else (3, 2, *shape[2:])
    letters = "DHW"[-spatial:]

    def f(p: Any, x: jax.Array) -> jax.Array:
        numbers = (
            (f"N{letters}C", f"{letters}IO", f"N{letters}C")
            if in_out
            else (f"NC{letters}", f"OI{letters}", f"NC{letters}")
        )
        out = jax.lax.conv_general_dilated(x, p["w"], (1,) * spatial, "VALID", dimension_numbers=numbers)
        return out + (p["b"] if in_out else p["b"].reshape(-1, *[1] * spatial))

    adapter = parity.function(f, {"w": np.zeros(jax_shape, np.float32), "b": np.zeros(3, np.float32)})
    assert_the_same_layer(
        torch_layer, adapter, [images(2, 2, *range(6, 6 + spatial)).astype(np.float32)], images=in_out
    )


def test_other_names():
    torch_model = torch.nn.Sequential(torch.nn.Embedding(7, 3), torch.nn.LayerNorm(3))
    adapter = parity.function(
        lambda p, x: norm({"scale": p[1]["gamma"], "b": p[1]["beta"]}, p[0]["embeddings"][x]),
        [
            {"embeddings": np.zeros((7, 3), np.float32)},
            {"gamma": np.zeros(3, np.float32), "beta": np.zeros(3, np.float32)},
        ],
    )
    assert_the_same_layer(torch_model, adapter, [np.array([[0, 6, 2]])])


def test_a_parameter_with_the_same_name_on_both_sides():
    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = torch.nn.Parameter(torch.zeros(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.gamma

    adapter = parity.function(lambda p, x: x * p["gamma"], {"gamma": np.zeros(3, np.float32)})
    assert_the_same_layer(Scaled(), adapter, [images(2, 3).astype(np.float32)])


def test_what_is_given_stays_as_it_is_and_other_leaves_are_kept():
    params = {"w": np.zeros((4, 3), np.float32), "b": np.zeros(3, np.float32), "steps": 2, "key": jax.random.key(0)}
    adapter = parity.function(lambda p, x: (x @ p["w"] + p["b"]) * p["steps"], params)
    torch_model = torch.nn.Linear(4, 3)
    parity.torch_to_jax(torch_model, adapter)
    assert not params["w"].any()
    assert adapter.params["steps"] == 2
    assert jnp.issubdtype(adapter.params["key"].dtype, jax.dtypes.prng_key)
    np.testing.assert_array_equal(adapter.params["w"], torch_model.weight.detach().T)


def test_the_state_of_an_nnx_module():
    """A model as an opaque function: its modules are not looked at."""
    graphdef, state = nnx.split(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
    torch_model = torch.nn.Linear(4, 3)
    for params in (state, nnx.to_pure_dict(state)):
        adapter = parity.function(lambda p, x: nnx.merge(graphdef, nnx.State(dict(p)))(x), params)
        assert set(adapter.as_nnx().names) == {"kernel", "bias"}
        assert_the_same_layer(torch_model.float(), adapter, [images(2, 4).astype(np.float32)])


def test_one_array_as_params():
    adapter = parity.function(lambda w, x: x @ w, np.zeros((4, 3), np.float32))
    rules = Rules(leaves={Program: (LeafRule("weight", "params", (1, 0)),)})
    torch_model = torch.nn.Linear(4, 3, bias=False)
    parity.torch_to_jax(torch_model, adapter, rules=rules)
    np.testing.assert_array_equal(adapter.params, torch_model.weight.detach().T)


# ---- what cannot be compared ----


def linear(params: Any, x: jax.Array) -> jax.Array:
    return x @ params["w"] + params["b"]


def checked(f: Any) -> parity.Report:
    torch_model = torch.nn.Linear(4, 3)
    adapter = parity.function(f, {"w": np.zeros((4, 3), np.float32), "b": np.zeros(3, np.float32)})
    parity.torch_to_jax(torch_model, adapter)
    return parity.check(torch_model, adapter, images(2, 4), level="forward")


@pytest.mark.parametrize(
    ("f", "params", "message"),
    [
        ({"w": 1}, linear, "takes f and params, .* not a dict: exchange the two arguments"),
        (3, {"w": np.ones(3)}, "not a int"),
        (linear, {}, "params hold no array"),
        (linear, 3, "params hold no array"),
        (linear, {"a": {"b": np.ones(3)}, "a.b": np.ones(3)}, "two tensors of JAX are called a.b"),
    ],
)
def test_what_is_no_function_of_a_pytree(f: Any, params: Any, message: str):
    with pytest.raises(ValueError, match=message):
        parity.function(f, params)


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda p, x: linear(p, x) if float(x.sum()) > 0 else x, "f cannot be traced by JAX: use jax.numpy"),
        (lambda p, x: np.asarray(linear(p, x)), "f cannot be traced by JAX"),
        (lambda p, x, y: linear(p, x), "missing 1 required positional argument"),
        (
            lambda p, x: linear(p, x) + jax.random.normal(jax.random.key(0), (2, 3)),
            r"function <lambda> draws random numbers \(test_function.py:\d+\), which PyTorch cannot draw",
        ),
    ],
)
def test_what_cannot_run(f: Any, message: str):
    with pytest.raises(ValueError, match=message) as raised:
        checked(f)
    assert "\n" not in str(raised.value)


def test_draws_without_effect_are_no_draws():
    def f(params: Any, x: jax.Array, train: bool = False) -> jax.Array:
        mask = jax.random.bernoulli(jax.random.key(0), 0.5, x.shape)
        return linear(params, jnp.where(mask, x, 0) if train else x)

    assert checked(f).passed


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda p, x: linear(p, x)[0], r"shapes differ: \[2, 3\] in PyTorch, \[3\] in JAX"),
        (lambda p, x: {"a": linear(p, x)}, "the output is tensor in PyTorch, {'a': tensor} in JAX"),
    ],
)
def test_other_outputs_are_a_finding(f: Any, message: str):
    (row,) = checked(f).failures
    assert row.kind == "structure"
    assert re.search(message, row.note)


def test_bfloat16_is_measured():
    torch_model = torch.nn.Linear(4, 3)
    adapter = parity.function(linear, {"w": np.zeros((4, 3), np.float32), "b": np.zeros(3, np.float32)})
    parity.torch_to_jax(torch_model, adapter)
    half = parity.check(torch_model, adapter, images(2, 4), level="forward", formats=True).formats[0]
    assert 1e-4 < half.error < half.cap
