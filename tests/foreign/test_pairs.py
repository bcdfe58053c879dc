"""The foreign pairs are what they claim to be: right ports are right, and every mistake changes the result."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from jax._src import source_info_util
from jax.extend.core import jaxprs_in_params

from tests.foreign.pairs import PAIRS
from tests.foreign.pairs.common import ForeignPair, Side, named, torch_outputs, torch_run

pytestmark = pytest.mark.usefixtures("x64")
EVALUATION = [(pair, bug) for pair in PAIRS for bug, mistake in pair.bugs.items() if not mistake.training]
TRAINING = [(pair, bug) for pair in PAIRS for bug, mistake in pair.bugs.items() if mistake.training]
TRAINED = [pair for pair in PAIRS if pair in [pair for pair, _ in TRAINING]]


def ids(value: Any) -> str:
    return value.name if isinstance(value, ForeignPair) else str(value)


@functools.cache
def models(pair: ForeignPair, seed: int) -> torch.nn.Module:
    """The PyTorch model in float64; its weights are numbers that float32 can hold."""
    return pair.torch_model(seed).double()


def difference(values: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> float:
    """The largest relative Frobenius error of an output."""
    assert values.keys() == reference.keys()
    assert all(values[name].shape == reference[name].shape for name in reference)
    assert all(x.dtype == np.float64 for x in values.values())
    return max(float(np.linalg.norm(values[k] - x) / np.linalg.norm(x)) for k, x in reference.items())


def in_training(model: Any, inputs: Any) -> dict[str, np.ndarray]:
    """The output of PyTorch in training mode, and the running statistics after it."""
    model = copy.deepcopy(model).train()
    output = torch_run(model, inputs)
    buffers = {name: x for name, x in model.named_buffers() if not name.endswith("num_batches_tracked")}
    return output | {name: np.asarray(x) for name, x in buffers.items()}


def source_lines(jaxpr: Any) -> Iterator[tuple[str, int]]:
    """File and line of every operation, and of all that called it, also in programs inside this one."""
    for equation in jaxpr.eqns:
        for frame in source_info_util.user_frames(equation.source_info.traceback):
            yield frame.file_name, frame.start_line
        for inner in jaxprs_in_params(equation.params):
            yield from source_lines(inner)


@pytest.mark.parametrize("seed", range(1))
@pytest.mark.parametrize("pair", PAIRS, ids=ids)
def test_the_port_is_the_same_function(pair: ForeignPair, seed: int):
    model, inputs = models(pair, seed), pair.inputs(seed)
    assert difference(pair.jax_side(model, "").run(inputs), torch_run(model, inputs)) < 1e-12


@pytest.mark.parametrize("pair", PAIRS, ids=ids)
def test_the_gradients_are_the_same(pair: ForeignPair):
    """In one random direction of all parameters together, which the conversion, being linear, takes to the port's."""
    model, direction, inputs = models(pair, 0), copy.deepcopy(models(pair, 1)), pair.inputs(0)
    for buffer in direction.buffers():
        buffer.zero_()
    slopes = pair.jax_side(model, "").derivative(pair.jax_side(direction, ""), inputs)
    parameters = list(model.parameters())
    for name, output in torch_outputs(model, inputs).items():
        weights = np.random.RandomState(0).standard_normal(tuple(output.shape))
        loss = (output * torch.from_numpy(weights)).sum()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
        pairs = zip(gradients, direction.parameters(), strict=True)
        parts = np.array([(g * d).sum().item() for g, d in pairs if g is not None])
        assert abs((slopes[name] * weights).sum() - parts.sum()) < 1e-12 * np.abs(parts).sum(), name


@pytest.mark.parametrize(("pair", "bug"), EVALUATION, ids=ids)
def test_every_bug_changes_the_result(pair: ForeignPair, bug: str):
    model, inputs = models(pair, 0), pair.inputs(0)
    assert difference(pair.jax_side(model, bug).run(inputs), torch_run(model, inputs)) > 1e-9


@pytest.mark.parametrize("seed", range(1))
@pytest.mark.parametrize("pair", TRAINED, ids=ids)
def test_the_port_is_the_same_in_training_mode(pair: ForeignPair, seed: int):
    model, inputs = models(pair, seed), pair.inputs(seed)
    assert difference(pair.jax_side(model, "").run_train(inputs), in_training(model, inputs)) < 1e-12


@pytest.mark.parametrize(("pair", "bug"), TRAINING, ids=ids)
def test_bugs_of_training_mode_show_there_only(pair: ForeignPair, bug: str):
    model, inputs = models(pair, 0), pair.inputs(0)
    side = pair.jax_side(model, bug)
    assert difference(side.run(inputs), torch_run(model, inputs)) < 1e-12
    assert difference(side.run_train(inputs), in_training(model, inputs)) > 1e-9


@pytest.mark.parametrize("pair", PAIRS, ids=ids)
def test_bugs_are_where_they_are_said_to_be(pair: ForeignPair):
    modules = dict(models(pair, 0).named_modules())
    assert sum(not bug.training for bug in pair.bugs.values()) == 3
    lines = [pair.line_of(name) for name in pair.bugs]
    assert len(set(lines)) == len(lines)
    for bug in pair.bugs.values():
        assert bug.modules
        assert set(bug.modules) <= modules.keys()


@pytest.mark.parametrize("pair", PAIRS, ids=ids)
def test_lines_of_bugs_compute_something(pair: ForeignPair):
    """The program traced by JAX has an operation from each of them."""
    for name, bug in pair.bugs.items():
        program = pair.jax_side(models(pair, 0), name).program(pair.inputs(0), train=bug.training)
        assert (pair.file, pair.line_of(name)) in set(source_lines(program.jaxpr)), name


@pytest.mark.parametrize("pair", PAIRS, ids=ids)
def test_no_layer_of_a_pair_is_without_effect(pair: ForeignPair):
    """All weights are random; those of three seeds differ."""
    first, second = models(pair, 0).state_dict(), models(pair, 1).state_dict()
    for name, tensor in first.items():
        if tensor.is_floating_point():
            assert not ((tensor == 0) | (tensor == 1)).any(), name
            assert not torch.equal(tensor, second[name]), name


def test_pairs_have_different_names_and_every_kind_of_port():
    assert len({pair.name for pair in PAIRS}) == len(PAIRS) == 13
    kinds = {pair.jax_side(models(pair, 0), "").kind for pair in PAIRS}
    assert kinds == {"linen", "equinox", "haiku", "function", "nnx"}


def test_outputs_are_flattened_by_name():
    x = torch.ones(2)
    assert list(named({"a": x, "b": (x, [x])})) == ["a", "b.0", "b.1.0"]
    assert list(named(x)) == [""]


def test_an_nnx_model_is_its_own_adapter():
    model = object()
    assert Side("nnx", model).adapter() is model
