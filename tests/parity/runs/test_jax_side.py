"""One model in one precision: nothing of the user's is changed, both frameworks give the same figures."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from parity import build_ledger, rel_f, torch_to_jax
from parity.carry.convert import jax_variables
from parity.recording.align import channels_last
from parity.runs.jax_side import JaxSide
from parity.runs.losses import cross_entropy, projection
from parity.runs.torch_side import TorchSide
from tests.support.parity.pairs import images, micro, resnet, text, twice

NHWC = channels_last(4)
X, GATE = images(3, 6), images(3, 6, seed=2)
PRECISIONS = {"float64": 1e-14, "float32": 1e-6}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_forward_runs_in_its_precision(precision: str):
    torch_model, jax_model = resnet()
    x = images(2, 3, 8, 8)
    ours = TorchSide.of(torch_model, precision).forward([x])
    theirs = JaxSide.of(jax_model, precision, [NHWC]).forward([x])
    for call in (*ours.values(), *theirs.values()):
        assert {array.dtype for array in (*call.inputs, *call.outputs)} == {np.dtype(precision)}
    assert rel_f(theirs["", 0].outputs[0], ours["", 0].outputs[0]) < PRECISIONS[precision]


def test_sides_are_copies_in_evaluation_mode():
    torch_model, jax_model = resnet()
    torch_model.train()
    jax_model.train()
    before = {name: value.clone() for name, value in torch_model.state_dict().items()}
    for side in (TorchSide.of(torch_model, "float64"), JaxSide.of(jax_model, "float64", [NHWC])):
        side.forward([images(2, 3, 8, 8)])
    assert all(torch.equal(value, before[name]) for name, value in torch_model.state_dict().items())
    assert torch_model.training
    assert not jax_model.bn1.use_running_average
    assert {v.dtype for v in jax_variables(jax_model).values()} == {np.dtype(np.float32)}
    assert jnp.zeros(1).dtype == np.float32  # 64-bit types are off again


def test_training_mode_moves_the_statistics_of_the_copy():
    torch_model, jax_model = resnet()
    x = images(2, 3, 8, 8)
    ours = TorchSide.of(torch_model, "float64", training=True)
    ours.gradients([x], projection())
    theirs = JaxSide.of(jax_model, "float64", [NHWC], training=True).updated([x], {})
    assert not torch.equal(ours.model.bn1.running_mean, torch_model.bn1.running_mean.double())
    assert rel_f(theirs["bn1.mean"], ours.model.bn1.running_mean) < 1e-14


def test_in_place_models_are_found_out():
    side = TorchSide.of(resnet()[0], "float64")
    assert not side.in_place
    calls = side.forward([images(2, 3, 8, 8)])
    assert side.in_place
    assert (calls["relu", 0].inputs[0] < 0).any()


def test_integers_stay():
    tokens = np.array([[0, 3, 10]])
    torch_model, jax_model = text()
    ours = TorchSide.of(torch_model, "float64").forward([tokens])
    theirs = JaxSide.of(jax_model, "float64", [None]).forward([tokens])
    assert ours["embed", 0].inputs[0].dtype == np.int64
    assert rel_f(theirs["", 0].outputs[0], ours["", 0].outputs[0]) < 1e-14


def test_shapes_without_computing():
    _, jax_model = micro()
    x = images(1, 3, 32, 32)
    shapes, _ = JaxSide.of(jax_model, "float64", [NHWC]).shapes([x])
    calls = JaxSide.of(jax_model, "float64", [NHWC]).forward([x])
    assert {key: [y.shape for y in call.outputs] for key, call in shapes.items()} == {
        key: [y.shape for y in call.outputs] for key, call in calls.items()
    }


def test_gradients_of_parameters_inputs_and_activations():
    torch_model, jax_model = twice()
    loss = projection()
    ours = TorchSide.of(torch_model, "float64").gradients([X, GATE], loss, activations={("fc", 0), ("fc", 1)})
    ledger = build_ledger(torch_model, jax_model)
    shapes = {key: [g.shape for g in found] for key, found in ours.activations.items()}
    theirs = JaxSide.of(jax_model, "float64", [None, None]).gradients(
        [X, GATE], loss, ledger, ours.params.keys(), activations=shapes
    )
    assert ours.params.keys() == theirs.params.keys() == dict(torch_model.named_parameters()).keys()
    assert len(ours.inputs) == len(theirs.inputs) == 2
    assert rel_f(theirs.loss, ours.loss) < 1e-14
    for name, gradient in ours.params.items():
        assert rel_f(theirs.params[name], gradient) < 1e-13
    for a, b in zip(theirs.inputs, ours.inputs, strict=True):
        assert rel_f(a, b) < 1e-13
    for key in shapes:
        assert rel_f(theirs.activations[key][0], ours.activations[key][0]) < 1e-13


def test_gradients_are_derivatives():
    """Against a difference quotient, so that both frameworks cannot be wrong together."""
    torch_model, jax_model = twice()
    loss, step = projection(), 1e-6
    ledger = build_ledger(torch_model, jax_model)
    side = JaxSide.of(jax_model, "float64", [None, None])
    gradients = side.gradients([X, GATE], loss, ledger, dict(torch_model.named_parameters()))
    towards = images(6, 6, seed=5)
    values = []
    for sign in (1, -1):
        moved = TorchSide.of(torch_model, "float64")
        with torch.no_grad():
            moved.model.fc.weight += sign * step * torch.from_numpy(towards)
        values.append(moved.gradients([X, GATE], loss).loss)
    quotient = (values[0] - values[1]) / (2 * step)
    assert (gradients.params["fc.weight"] * towards).sum() == pytest.approx(quotient, rel=1e-6)


def test_frozen_parameters_have_no_gradient():
    torch_model, _ = twice()
    torch_model.norm.weight.requires_grad_(False)
    ours = TorchSide.of(torch_model, "float64").gradients([X, GATE], projection())
    assert ours.params.keys() == {"fc.weight", "fc.bias", "norm.bias"}


def test_inputs_that_do_not_move_are_left_out():
    torch_model, jax_model = text()
    tokens, loss = np.array([[0, 3, 10], [1, 1, 1]]), projection()
    ledger = build_ledger(torch_model, jax_model)
    ours = TorchSide.of(torch_model, "float64").gradients([tokens], loss)
    theirs = JaxSide.of(jax_model, "float64", [None]).gradients([tokens], loss, ledger, ours.params.keys())
    assert ours.inputs == theirs.inputs == []
    assert rel_f(theirs.params["embed.weight"], ours.params["embed.weight"]) < 1e-14


class TorchDrops(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.drop = torch.nn.Linear(6, 6), torch.nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.fc(self.drop(x)))


class Drops(nnx.Module):
    def __init__(self) -> None:
        self.fc, self.drop = nnx.Linear(6, 6, rngs=nnx.Rngs(0)), nnx.Dropout(0.5)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.drop(self.fc(self.drop(x)))


def test_random_draws_get_the_numbers_that_are_handed_out():
    torch_model, jax_model = TorchDrops(), Drops()
    ledger = torch_to_jax(torch_model, jax_model)
    names, x = dict(torch_model.named_parameters()), np.arange(18.0).reshape(3, 6)
    loss = cross_entropy(np.array([0, 1, 2]))
    results = []
    for kept in (np.full((3, 6), 0.1), np.tile([0.1, 0.9], (3, 3))):
        draws = {("drop", 1): [kept]}  # the first call drops nothing
        ours = TorchSide.of(torch_model, "float64", training=True)
        theirs = JaxSide.of(jax_model, "float64", [None], training=True)
        output = theirs.forward([x], draws=draws)["", 0].outputs[0]
        wanted = ours.gradients([x], loss, draws=draws)
        given = theirs.gradients([x], loss, ledger, names, draws=draws)
        assert rel_f(given.params["fc.weight"], wanted.params["fc.weight"]) < 1e-13
        assert rel_f(output, ours.forward([x], draws=draws)["", 0].outputs[0]) < 1e-14
        assert ((output == 0) == (kept > 0.5)).all()
        results.append(wanted.loss)
    assert results[0] != results[1]


def test_float64_sees_no_float32_constants(x64: None):
    """Both precisions run in one process, whatever the user's switch says."""
    _, jax_model = twice()
    single = JaxSide.of(jax_model, "float32", [None, None]).forward([X, GATE])
    assert single["", 0].outputs[0].dtype == np.float32
    assert jax.config.jax_enable_x64
    assert isinstance(jax_model, nnx.Module)


def test_the_variables_that_a_run_writes_to():
    class Writes(nnx.Module):
        def __init__(self) -> None:
            self.read, self.moved = nnx.Param(jnp.ones(3)), nnx.Variable(jnp.ones(3))

        def __call__(self, x: jax.Array) -> jax.Array:
            self.moved[...] = self.moved[...] * 0.9
            return x * self.read[...]

    assert JaxSide.of(Writes(), "float64", [None]).written([np.ones(3)]) == {"moved"}
