"""float32 leaks: found where they are, and nowhere else."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from parity import check, torch_to_jax
from parity.pairing.match_calls import Pair
from parity.proof.float32_leaks import gradient_leaks, leaked_format, leaks, short_format
from parity.recording.capture import Call

DRAW = np.random.RandomState(0)
X = DRAW.standard_normal((2, 5, 8))
SHORT = X.astype(np.float32).astype(np.float64)


def test_the_shortest_format_is_told() -> None:
    assert short_format(X) is None
    assert short_format(SHORT) == "float32"
    assert short_format(X.astype(np.float16).astype(np.float64)) == "float16"
    assert short_format(np.arange(5.0)) == "bfloat16"
    assert short_format(np.zeros(3)) is None
    assert short_format(SHORT.astype(np.float32)) is None  # a dtype that differs is reported as such


def test_one_long_number_is_no_leak() -> None:
    mixed = SHORT.copy()
    mixed[1, 4, 7] = np.pi
    assert leaked_format([mixed], [X]) is None


def test_a_result_rounded_to_float32_is_a_leak() -> None:
    assert leaked_format([np.tanh(X).astype(np.float32).astype(np.float64)], [X]) == "float32"
    # Even if the inputs were short: a product of float32 numbers has twice their digits.
    product = (SHORT * 1.1).astype(np.float32).astype(np.float64)
    assert leaked_format([product], [SHORT]) == "float32"


LEGITIMATE = {
    "images passed on": SHORT,
    "images rearranged": SHORT.transpose(2, 0, 1)[:, ::-1],
    "rectified": np.maximum(SHORT, 0),
    "negated and halved": -SHORT / 2,
    "zeros": np.zeros(20),
    "one-hot": np.eye(12),
    "counts": np.repeat(np.arange(4.0), 9),
    "sums": SHORT.sum(-1),
}


@pytest.mark.parametrize("name", LEGITIMATE)
def test_short_numbers_that_were_given_are_no_leak(name: str) -> None:
    assert leaked_format([LEGITIMATE[name]], [SHORT]) is None


def _pair(name: str, module: torch.nn.Module) -> Pair:
    return Pair((name, 0), (name, 0), module, (0,), (None,), (None,))


def test_the_leaking_module_is_named_and_not_the_one_around_it() -> None:
    inner, outer = torch.nn.Linear(8, 8).double(), torch.nn.Sequential(torch.nn.Linear(8, 8)).double()
    pairs = [_pair("0", inner), _pair("", outer)]
    right = np.tanh(X)
    wrong = right.astype(np.float32).astype(np.float64)
    ours = {("0", 0): Call([X], [right]), ("", 0): Call([X], [right])}
    theirs = {("0", 0): Call([X], [wrong]), ("", 0): Call([X], [wrong])}
    assert set(leaks(pairs, ours, theirs)) == {"0"}
    assert "JAX" in leaks(pairs, ours, theirs)["0"]
    assert "PyTorch" in leaks(pairs, theirs, ours)["0"]
    assert leaks(pairs, ours, ours) == {}


def test_a_table_that_is_looked_up_is_no_leak() -> None:
    table = torch.nn.Embedding(9, 4)
    rows = table.weight.detach().double().numpy()[[1, 5, 2, 2]]
    pairs = [_pair("table", table.double())]
    calls = {("table", 0): Call([], [rows])}
    assert leaks(pairs, calls, calls) == {}


def test_gradients() -> None:
    right, short = {"a": X, "b": X, "c": np.zeros(9)}, {"a": SHORT, "b": X, "c": np.zeros(9)}
    assert gradient_leaks(right, right) == {}
    assert gradient_leaks(right, short).keys() == {"a"}
    assert "JAX" in gradient_leaks(right, short)["a"]
    assert "PyTorch" in gradient_leaks(short, right)["a"]


def test_rounding_around_zero_is_no_leak() -> None:
    """As a key's bias has it, whose gradient the softmax cancels."""
    assert gradient_leaks({"a": X, "b": SHORT * 2.0**-52}, {"a": X, "b": SHORT * 2.0**-54}) == {}


def test_the_input_as_a_gradient_is_no_leak() -> None:
    assert gradient_leaks({"a": SHORT}, {"a": SHORT}, [SHORT]) == {}


class TorchShortWeight(torch.nn.Module):
    """Its weight is a float32 number anyway, so that nothing but its gradient loses digits."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.rand(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale.float().to(x.dtype)


class TorchPlainWeight(TorchShortWeight):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


class JaxShortWeight(nnx.Module):
    def __init__(self) -> None:
        self.scale = nnx.Param(jnp.zeros(16))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.scale[...].astype(jnp.float32).astype(x.dtype)[None]


def test_a_leak_that_the_port_alone_has_and_only_gradients_show() -> None:
    torch_model, jax_model = TorchPlainWeight(), JaxShortWeight()
    torch_to_jax(torch_model, jax_model)
    report = check(torch_model, jax_model, np.random.RandomState(0).standard_normal((1, 16)))
    (leak,) = [row for row in report.failures if row.kind == "leak"]
    assert leak.name == "scale"
    assert leak.note.startswith("JAX's gradient holds only float32 numbers")


def test_a_cast_that_both_frameworks_share_is_no_leak() -> None:
    torch_model, jax_model = TorchShortWeight(), JaxShortWeight()
    torch_to_jax(torch_model, jax_model)
    report = check(torch_model, jax_model, np.random.RandomState(0).standard_normal((1, 16)))
    assert not [row for row in report.failures if row.kind == "leak"]
    assert [note.partition(" (")[0] for note in report.notes] == ["float32 by design in: the model"]
