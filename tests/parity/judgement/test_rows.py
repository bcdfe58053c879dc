"""Rows: what is compared with what, by which gate; whole rows, by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

import t2t_torch
from parity.carry.convert import build_ledger, torch_to_jax
from parity.carry.rules import Rules
from parity.judgement.rows import (
    _gradient_error,
    _independent,
    distance,
    float32_gradient_rows,
    float32_rows,
    gradient_rows,
    layer_rows,
    noise_floor,
    summed,
    weight_rows,
)
from parity.measure.gates import Gates, Row
from parity.pairing.match_calls import Pair
from parity.recording.capture import Call
from parity.runs.torch_side import Gradients
from tests.support.parity.pairs import twice

GATES, INF, NAN = Gates(), math.inf, math.nan


NOTHING = "nothing to compare: no number is finite on either side"


def numbers(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)


@pytest.mark.parametrize(
    ("module", "terms"),
    [
        (nn.Linear(384, 24), 384),
        (nn.Conv2d(6, 8, 3, groups=2), 27),
        (nn.Conv1d(64, 64, 1, groups=64), 1),
        (nn.MultiheadAttention(16, 4), 16),
        (nn.LayerNorm(7), 0),
        (nn.Embedding(9, 6), 0),
        (t2t_torch.create_model("t2t_vit_micro"), 0),  # its cls_token and pos_embed sum nothing
        (nn.ReLU(), 0),
        (nn.Sequential(nn.Linear(5, 3)), 0),
    ],
)
def test_summed_is_the_fan_in_of_a_modules_own_weights(module: torch.nn.Module, terms: int):
    assert (summed(module), type(summed(module))) == (terms, int)


def pair(path: str, module: torch.nn.Module, jax: str | None = None) -> Pair:
    return Pair((path, 0), (path if jax is None else jax, 0), module, (0,), (None,), (None,))


def squeeze(numbers: int, mode: str) -> dict[str, float]:
    """The gates of Linear(384), ReLU, Linear(24), LayerNorm on tensors of `numbers`, PyTorch's error 1e-7 in each."""
    modules = {"a": nn.Linear(384, 24), "b": nn.ReLU(), "c": nn.Linear(24, 384), "d": nn.LayerNorm(384)}
    pairs = [pair(path, module) for path, module in modules.items()]
    exact = {p.jax: Call([np.ones(numbers)], [np.ones(numbers)]) for p in pairs}
    ours = {key: Call(call.inputs, [call.outputs[0] * (1 + 1e-7)]) for key, call in exact.items()}
    rows = float32_rows(pairs, exact, ours, exact, mode, Gates())
    return {row.name: row.gate for row in rows if row.mode == mode}


def expected(terms: int, size: int = 1000) -> float:
    return pytest.approx(Gates().float32(1e-7, size, 1e-5, terms=terms), rel=1e-6)


def test_forced_each_layer_is_granted_its_own_sum_alone():
    assert squeeze(1000, "forced") == {"a": expected(384), "b": expected(0), "c": expected(24), "d": expected(0)}


def test_running_free_a_layer_is_granted_the_sum_before_its_own():
    assert squeeze(1000, "free") == {"a": expected(384), "b": expected(384), "c": expected(384), "d": expected(384)}


def test_few_numbers_are_granted_chance():
    assert squeeze(8, "forced")["d"] == expected(0, 8)
    assert squeeze(8, "forced")["d"] > squeeze(1000, "forced")["d"]


# ---- weights ----


def test_equal_weights_are_one_row():
    source, model = twice()
    assert weight_rows(build_ledger(source, model), source, model) == [
        Row("4 tensors", "weights", "-", "as stored", 0.0, 0.0)
    ]


def test_every_other_weight_is_a_row_of_its_own():
    source, model = twice()
    ledger = build_ledger(source, model)
    with torch.no_grad():
        source.fc.bias[:] = torch.tensor([3.0, 4.0, 0.0, 0.0, 0.0, 0.0])
    model.fc.bias[...] = jnp.array([3.0, 4.5, 0.0, 0.0, 0.0, 0.0])
    source.norm.weight.requires_grad_(False)
    source.norm.bias.data = torch.zeros(6)
    model.norm.bias.set_value(jnp.zeros(6, jnp.float16))
    source.norm.bias.requires_grad_(False)
    frozen, dtypes = "trained on one side, frozen on the other", "float32 in PyTorch, float16 in JAX"
    assert weight_rows(ledger, source, model) == [
        Row("1 tensors", "weights", "-", "as stored", 0.0, 0.0),
        Row("fc.bias", "weights", "-", "float32", 0.1, 0.0),
        Row("norm.weight", "weights", "-", "float32", 0.0, 0.0, note=frozen),
        Row("norm.bias", "weights", "-", "float32", 0.0, 0.0, note=f"{frozen}; {dtypes}"),
    ]
    with torch.no_grad():
        source.fc.weight += 1
    assert [row.name for row in weight_rows(ledger, source, model)] == [entry.torch for entry in ledger]


def test_a_weight_in_a_stack_is_compared_with_its_own_layer():
    class Stack(nnx.Module):
        def __init__(self) -> None:
            self.blocks = nnx.eval_shape(
                lambda: nnx.vmap(lambda rngs: nnx.Linear(2, 1, rngs=rngs))(nnx.Rngs(0).split(2))
            )

    source = nn.ModuleDict({"blocks": nn.ModuleList(nn.Linear(2, 1) for _ in range(2))})
    model, rules = Stack(), Rules(stacked={"blocks": "blocks"})
    ledger = torch_to_jax(source, model, rules=rules)
    with torch.no_grad():
        source["blocks"][1].weight[:] = torch.tensor([[3.0, 4.0]])
    model.blocks.kernel[...] = model.blocks.kernel[...].at[1].set(jnp.array([[3.0], [4.5]]))
    assert weight_rows(ledger, source, model) == [
        Row("3 tensors", "weights", "-", "as stored", 0.0, 0.0),
        Row("blocks.1.weight", "weights", "-", "float32", 0.1, 0.0),
    ]


# ---- layers ----


@pytest.mark.parametrize(
    ("value", "reference", "expected"),
    [
        ([], [], (0.0, "")),
        ([numbers(3, 4.5), numbers(2)], [numbers(3, 4), numbers(1)], (1.0, "")),
        ([numbers(2), numbers(3, 4.5)], [numbers(1), numbers(3, 4)], (1.0, "")),
        ([numbers(NAN)], [numbers(NAN)], (INF, NOTHING)),
        ([numbers(1), numbers(INF)], [numbers(1), numbers(INF)], (INF, NOTHING)),
        ([numbers(1, NAN)], [numbers(1, NAN)], (0.0, "")),
        ([numbers(2, NAN)], [numbers(1, NAN)], (1.0, "")),
        ([numbers(NAN, 1)], [numbers(1, NAN)], (INF, "not finite on one side only")),
        ([numbers(1) + 0j], [numbers(1)], (INF, "real numbers in PyTorch, complex ones in JAX")),
        ([numbers(1)], [numbers(1) + 0j], (INF, "complex numbers in PyTorch, real ones in JAX")),
        ([numbers(3) - 4j], [numbers(3) + 4j], (1.6, "")),
        ([numbers(1)], [numbers(0)], (INF, "")),
        ([numbers(NAN)], [numbers(1)], (INF, "not finite on one side only")),
        ([numbers(1)], [numbers(NAN)], (INF, "not finite on one side only")),
        ([numbers(1, NAN)], [numbers(1, 1)], (INF, "not finite on one side only")),
        ([numbers(1, 2)], [numbers(1, 2, 3)], (INF, "shapes differ: [3] in PyTorch, [2] in JAX")),
        ([numbers()], [numbers()], (INF, "nothing to compare: the tensor is empty")),
    ],
)
def test_the_distance_of_a_call_is_that_of_its_worst_tensor(value, reference, expected):
    assert distance(value, reference) == expected


def test_every_tensor_of_a_call_needs_a_partner():
    with pytest.raises(ValueError, match="zip"):
        distance([numbers(1)], [numbers(1), numbers(2)])


RIGHT, OFF_BY_TENTH, OFF_BY_FIFTH = numbers(3, 4), numbers(3, 4.5), numbers(3, 5)
PAIRS = [pair("a", nn.Flatten(), "x"), pair("b", nn.ReLU(), "y"), pair("", nn.ReLU())]
X, Y, ROOT = (p.jax for p in PAIRS)
WANTED = {
    X: Call([RIGHT], [RIGHT]),
    Y: Call(None, [RIGHT]),  # its inputs could not be matched
    ROOT: Call([RIGHT], [RIGHT]),
}
GIVEN = {X: Call([OFF_BY_FIFTH], [OFF_BY_TENTH]), Y: Call([RIGHT], [RIGHT]), ROOT: Call([RIGHT], [OFF_BY_FIFTH])}


def test_forced_layers_are_judged_with_what_they_are_given():
    """Of the model itself the inputs are ours; what moves numbers alone has to be equal bit for bit."""
    assert layer_rows(PAIRS, WANTED, GIVEN, "forced", GATES) == [
        Row("a", "layer", "forced", "float64", 0.1, 0.0),
        Row("a", "calls", "forced", "float64", 0.2, 1e-13),
        Row("b", "layer", "forced", "float64", 0.0, 1e-13),
        Row("", "output", "forced", "float64", 0.2, 1e-13),
    ]
    nothing = {X: Call([], [RIGHT])}, {X: Call(None, [RIGHT])}
    assert layer_rows(PAIRS[:1], *nothing, "forced", GATES)[1] == Row("a", "calls", "forced", "float64", 0.0, 1e-13)


def test_free_layers_are_judged_by_their_outputs_and_know_their_noise():
    noise = {X: 2.0**-20, Y: 2.0**-19, ROOT: 2.0**-18}
    assert layer_rows(PAIRS, WANTED, GIVEN, "free", GATES, noise) == [
        Row("a", "layer", "free", "float64", 0.1, 1e-13, noise=2.0**-49),
        Row("b", "layer", "free", "float64", 0.0, 1e-13, noise=2.0**-48),
        Row("", "output", "free", "float64", 0.2, 1e-13, noise=2.0**-47),
    ]
    assert layer_rows(PAIRS[:1], WANTED, GIVEN, "free", GATES)[0].noise is None


def test_a_float64_run_holds_nothing_narrower():
    low = [RIGHT.astype(np.float32), RIGHT.astype(np.float16), RIGHT.astype(int)]
    (row,) = layer_rows(PAIRS[2:], {ROOT: Call(None, [RIGHT] * 3)}, {ROOT: Call(None, low)}, "free", GATES)
    assert row.note == "float16, float32 in a float64 run"
    assert not row.passed


def test_noise_is_what_a_shaken_input_changes():
    """Both runs are PyTorch's; the floor is kept by JAX's names."""
    oracle = {("a", 0): Call(None, [RIGHT]), ("", 0): Call(None, [RIGHT])}
    perturbed_run = {("a", 0): Call(None, [OFF_BY_TENTH]), ("", 0): Call(None, [OFF_BY_FIFTH])}
    assert noise_floor([PAIRS[0], PAIRS[2]], oracle, perturbed_run) == {X: 0.1, ROOT: 0.2}


def test_float32_layers_are_judged_against_the_oracle_and_each_other():
    ours = {key: dataclasses.replace(call, outputs=[OFF_BY_TENTH]) for key, call in WANTED.items()}
    noise = {X: 1e-7, Y: 2e-7, ROOT: 3e-7}
    between = pytest.approx(0.5 / math.hypot(3, 4.5), rel=1e-14)
    gate = 8 * 0.1  # of two numbers an error is small by chance; and two that stray so far are no closer to each other
    assert float32_rows(PAIRS, WANTED, ours, GIVEN, "free", GATES, noise) == [
        Row("a", "layer", "free", "float32", 0.1, gate, 0.1, noise=1e-7, growth=0.5),
        Row("a", "layer", "between", "float32", 0.0, gate + 0.1),
        Row("b", "layer", "free", "float32", 0.0, gate, 0.1, noise=2e-7),
        Row("b", "layer", "between", "float32", between, gate + 0.1),
        Row("", "output", "free", "float32", 0.2, gate, 0.1, noise=3e-7),
        Row("", "output", "between", "float32", between, gate + 0.1),
    ]
    near = {key: dataclasses.replace(call, outputs=[RIGHT * (1 + 1e-7)]) for key, call in WANTED.items()}
    limits = {
        row.name: row.gate for row in float32_rows(PAIRS, WANTED, near, GIVEN, "free", GATES) if row.mode != "free"
    }
    assert limits == {"a": 1e-5, "b": 1e-5, "": 3e-6}
    assert float32_rows(PAIRS[:1], WANTED, ours, GIVEN, "forced", GATES) == [
        Row("a", "layer", "forced", "float32", 0.1, gate, 0.1)
    ]


def test_few_numbers_and_logits_have_their_own_limits():
    exact = {key: Call(None, [RIGHT]) for key in (X, ROOT)}
    ours = {key: Call(None, [RIGHT * (1 + 1e-7)]) for key in exact}
    hidden, logits = float32_rows([PAIRS[0], PAIRS[2]], exact, ours, exact, "forced", GATES)
    assert (hidden.gate, logits.gate) == (1e-5, 3e-6)  # 2 * 10^3 times PyTorch's error, cut


def test_an_error_handed_on_by_few_numbers_is_granted_their_chance():
    exact = {X: Call([RIGHT], [np.ones(1000)])}
    ours = {X: Call([RIGHT], [np.ones(1000) * (1 + 1e-10)])}
    row, _ = float32_rows(PAIRS[:1], exact, ours, exact, "free", GATES)
    assert row.gate == pytest.approx(2e3 * 1e-10 + 2**-22, rel=1e-5)


def test_notes_of_float32_rows():
    broken = {ROOT: Call([RIGHT], [numbers(3, NAN)])}
    free, between = float32_rows(PAIRS[2:], WANTED, WANTED, broken, "free", GATES)
    assert free.note == between.note == "not finite on one side only"
    lost = {ROOT: Call([numbers(INF, INF)], [RIGHT])}
    assert float32_rows(PAIRS[2:], WANTED, WANTED, lost, "free", GATES)[0].growth is None
    nothing = {ROOT: Call(None, [RIGHT])}
    assert float32_rows(PAIRS[2:], nothing, nothing, nothing, "free", GATES)[0].growth is None


def test_without_a_sum_nothing_is_granted_for_one():
    exact = {X: Call(None, [np.ones(1000)])}
    rows = float32_rows(PAIRS[:1], exact, exact, exact, "free", Gates(f32_floor=0.0))
    assert rows[0].gate == 0


@pytest.mark.parametrize(
    ("inputs", "mode", "size"),
    [([2], "free", 2), ([4, 4], "free", 8), ([20], "free", 9), ([], "free", 9), (None, "free", 9), ([2], "forced", 9)],
)
def test_as_many_errors_are_independent_as_the_narrowest_tensor_has_numbers(inputs, mode: str, size: int):
    given = None if inputs is None else [np.zeros(n) for n in inputs]
    assert _independent(Call(given, [np.zeros(5), np.zeros(4)]), mode) == size


# ---- gradients ----

EXACT = Gradients(
    -2.0,
    {"w": numbers(3, 4), "v": numbers(12), "zero": numbers(1e-15)},
    [numbers(3, 4), numbers(1)],
    {X: [numbers(3, 4), numbers(1, 0)], Y: [numbers(0, 0)]},
)
SPOILT = Gradients(
    -2.5,
    {"w": numbers(3, 4.5), "v": numbers(12), "zero": numbers(1.3)},
    [numbers(3, 5), numbers(1)],
    {X: [numbers(3, 4), numbers(1.5, 0)], Y: [numbers(0.5, 0)]},
)
NAMES = {X: "a", Y: "b"}
ERRORS = {
    ("w", "gradient"): 0.1,
    ("v", "gradient"): 0.0,
    ("zero", "gradient"): pytest.approx(0.1),  # of all gradients together, 13
    ("input 0", "gradient"): 0.2,
    ("input 1", "gradient"): 0.0,
    ("a", "activation gradient"): 0.5,
    ("b", "activation gradient"): 0.1,  # of the largest, 5
}
SIZES = {"w": 2, "v": 1, "zero": 1, "input 0": 2, "input 1": 1, "a": 2, "b": 2}


@pytest.mark.parametrize("mode", ["free", "train"])
def test_gradients_in_float64(mode: str):
    assert gradient_rows(EXACT, SPOILT, GATES, names=NAMES, mode=mode) == [
        Row("loss", "loss", mode, "float64", 0.25, 1e-13),
        *(Row(name, kind, mode, "float64", error, 1e-12) for (name, kind), error in ERRORS.items()),
    ]


@pytest.mark.parametrize(
    "changes", [{"inputs": EXACT.inputs[:1]}, {"activations": EXACT.activations | {X: EXACT.activations[X][:1]}}]
)
def test_every_gradient_needs_a_partner(changes: dict[str, Any]):
    for pair in ((EXACT, dataclasses.replace(EXACT, **changes)), (dataclasses.replace(EXACT, **changes), EXACT)):
        with pytest.raises(ValueError, match="zip"):
            gradient_rows(*pair, GATES, names=NAMES)


def test_gradients_of_activations_are_judged_where_they_are_asked_for():
    rows = gradient_rows(EXACT, EXACT, GATES)
    assert [(row.name, row.mode) for row in rows[1:]] == [(name, "free") for name, kind in ERRORS if kind == "gradient"]


@pytest.mark.parametrize("mode", ["free", "train"])
def test_gradients_in_float32(mode: str):
    """PyTorch's own errors are a millionth of JAX's: then few numbers are granted more, up to a limit."""
    ours = Gradients(
        -2 * (1 + 1e-13),
        {"w": numbers(3, 4 + 5e-9), "v": numbers(12), "zero": numbers(1e-15)},
        [numbers(3, 4), numbers(1)],
        {X: [numbers(3, 4), numbers(1, 0)], Y: [numbers(0, 0)]},
    )
    loss, first, *rows = float32_gradient_rows(EXACT, ours, SPOILT, GATES, names=NAMES, mode=mode)
    assert (loss.name, loss.kind, loss.mode, loss.precision) == ("loss", "loss", mode, "float32")
    assert (loss.error, loss.torch_error) == (0.25, pytest.approx(1e-13, rel=0.01))
    assert loss.gate == GATES.float32(loss.torch_error, 1, 1e-6)
    assert first == Row("loss", "loss", "between", "float32", pytest.approx(0.25), 1e-6)
    own = dict.fromkeys(ERRORS, 0.0) | {("w", "gradient"): pytest.approx(1e-9)}
    assert [(row.name, row.kind, row.mode, row.precision, row.error, row.torch_error) for row in rows] == [
        (*key, mode, "float32", error, own[key]) for key, error in ERRORS.items()
    ]
    for row in rows:
        assert row.gate == GATES.float32(row.torch_error, SIZES[row.name], 1e-5, floor=2**-21)
    assert float32_gradient_rows(EXACT, ours, SPOILT, GATES)[2].mode == "free"


@pytest.mark.parametrize("side", [0, 1])
def test_a_loss_without_any_gradient_compares_nothing(side: int):
    dead = Gradients(1.0, {"w": numbers(0, 0)}, [numbers(1)], {})
    loss = gradient_rows(dead, dead, GATES)[0]
    assert (loss.error, loss.note, loss.passed) == (0.0, "every gradient is zero: nothing was compared", False)
    runs = [dead, dead]
    runs[side] = dataclasses.replace(dead, params={"w": numbers(0, 1)})
    assert gradient_rows(*runs, GATES)[0].passed
    assert gradient_rows(dataclasses.replace(dead, params={}), dataclasses.replace(dead, params={}), GATES)[0].passed


def test_an_output_of_zeros_compares_nothing():
    zero = {key: Call([RIGHT], [numbers(0, 0)]) for key in (X, Y, ROOT)}
    inner, _, output = layer_rows(PAIRS, zero, zero, "free", GATES)
    assert inner.passed
    assert (output.error, output.note) == (0.0, "nothing to compare: zero everywhere on both sides")
    aux = {ROOT: Call([RIGHT], [numbers(0), RIGHT])}
    assert layer_rows(PAIRS[2:], aux, aux, "free", GATES)[0].passed
    counts = {ROOT: Call([RIGHT], [np.array([0])])}
    assert layer_rows(PAIRS[2:], counts, counts, "free", GATES)[0].passed


def test_a_gradient_that_is_zero_by_structure_is_measured_against_all_of_them():
    assert _gradient_error(numbers(3e-10), numbers(2e-10), 1.0) == pytest.approx(0.5)
    assert _gradient_error(numbers(2e-10), numbers(1e-10), 1.0) == pytest.approx(1e-10)
    assert _gradient_error(numbers(0), numbers(0), 0.0) == 0
