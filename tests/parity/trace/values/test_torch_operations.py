"""Operations of a PyTorch model: what each is computed from, by which module, also through views and in place."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from parity.runs.torch_side import TorchSide
from parity.trace.values.fingerprint import Fingerprint
from parity.trace.values.torch_operations import TorchTrace, operation_values, trace_torch

X = np.random.RandomState(0).standard_normal((3, 4))


class Function(torch.nn.Module):
    """A function as a model."""

    def __init__(self, function: Callable[..., Any], **modules: torch.nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *arrays: torch.Tensor) -> Any:
        return self.function(*self.children(), *arrays)


def trace(function: Callable[..., Any], *arrays: np.ndarray, **modules: torch.nn.Module) -> TorchTrace:
    return trace_torch(TorchSide.of(Function(function, **modules), "float64"), arrays or (X,))


def names(found: TorchTrace) -> list[str]:
    return [operation.name for operation in found.operations]


def inputs(found: TorchTrace, name: str) -> set[str]:
    """Return the names of the operations that the last operation `name` is computed from."""
    operation = next(x for x in reversed(found.operations) if x.name == name)
    return {found.operations[i].name for i in operation.inputs}


def test_operations_in_order():
    found = trace(lambda x: torch.tanh(x.sin() + x.cos()))
    assert names(found) == ["sin", "cos", "add", "tanh"]
    assert [sorted(x.inputs) for x in found.operations] == [[], [], [0, 1], [2]]
    assert found.users() == [[2], [2], [3], []]
    assert found.operations[0].shape == (3, 4)
    assert found.operations[0].values.matches(Fingerprint.of(np.sin(X)).sums)
    assert all(x.where.startswith("test_torch_operations.py:") for x in found.operations)


def test_views_of_the_whole_are_the_same_values():
    found = trace(lambda x: x.sin().T.reshape(2, 6).unsqueeze(0).cos())
    assert inputs(found, "cos") <= {"sin", "clone", "_unsafe_view"}
    found = trace(lambda x: x.sin().view(2, 6).T.cos())
    assert names(found) == ["sin", "cos"]
    assert inputs(found, "cos") == {"sin"}


@pytest.mark.parametrize(
    "parts",
    [
        lambda y: y.chunk(2, -1),
        lambda y: y.split([2, 2], -1),
        lambda y: (y[:, :2], y[:, 2:]),
        lambda y: y.reshape(3, 2, 2).unbind(1),
        lambda y: y.view(3, 2, 2).permute(1, 0, 2),
    ],
    ids=["chunk", "split", "slices", "unbind", "permuted"],
)
def test_parts_are_results_of_their_own(parts: Callable[..., Any]):
    def function(x: torch.Tensor) -> torch.Tensor:
        first, second = parts(x.sin())
        return first.exp() * second.cos()

    found = trace(function)
    exp, cos = (next(x for x in found.operations if x.name == name) for name in ("exp", "cos"))
    assert exp.inputs != cos.inputs
    for operation, values in ((exp, np.sin(X)[:, :2]), (cos, np.sin(X)[:, 2:])):
        (source,) = operation.inputs
        assert found.operations[source].values.matches(Fingerprint.of(values).sums)


def test_more_parts_than_usual():
    found = trace(lambda x: torch.stack([part.exp() for part in x.sin().reshape(12, 1).expand(12, 2).unbind(0)]))
    assert names(found).count("exp") == 12


def test_indices_and_masks_are_no_numbers():
    found = trace(lambda x: torch.where(x.sin() > 0, x.cos(), x.exp()))
    where = found.operations[-1]
    assert {found.operations[i].name for i in where.inputs} == {"sin", "cos", "exp"}
    assert {found.operations[i].name for i in where.numbers} == {"cos", "exp"}
    assert found.users()[0] == []

    found = trace(lambda x: x.exp()[x.sin().argmax(0)])
    assert inputs(found, "index") == {"exp", "sin"}
    assert {found.operations[i].name for i in found.operations[-1].numbers} == {"exp"}


def test_in_place_operations():
    def function(x: torch.Tensor) -> torch.Tensor:
        y = x.sin()
        y.mul_(2).add_(x.cos())
        return y.exp()

    found = trace(function)
    assert names(found) == ["sin", "mul_", "cos", "add_", "exp"]
    assert inputs(found, "exp") == {"add_"}
    assert inputs(found, "add_") == {"mul_", "cos"}
    assert found.operations[3].values.matches(Fingerprint.of(2 * np.sin(X) + np.cos(X)).sums)
    values = operation_values(TorchSide.of(Function(function), "float64"), [X], {1, 3})
    np.testing.assert_array_equal(values[1].given[0], np.sin(X))
    np.testing.assert_allclose(values[3].result, 2 * np.sin(X) + np.cos(X), atol=1e-15)


def test_a_part_that_is_overwritten_keeps_the_rest():
    def function(x: torch.Tensor) -> torch.Tensor:
        y = x.sin()
        y[:, 0] = x.cos()[:, 0]
        return y.exp()

    found = trace(function)
    assert inputs(found, "exp") == {"sin", "copy_"}
    copy = next(x for x in found.operations if x.name == "copy_")
    sources = {found.operations[i].name for i in copy.inputs}
    assert sources == {"select"}  # of the cosine, not of what it overwrites
    sine = names(found).index("sin")
    assert all(sine not in found.operations[i].inputs for i in copy.inputs)


def test_a_part_that_is_changed_in_place_uses_what_it_held():
    def function(x: torch.Tensor) -> torch.Tensor:
        y = x.sin()
        y[:, :2] *= 3
        return y.exp()

    found = trace(function)
    assert inputs(found, "exp") == {"sin", "mul_", "copy_"} or inputs(found, "exp") == {"sin", "mul_"}
    assert inputs(found, "mul_") == {"slice"}


def test_a_view_sees_what_was_written_to_its_base():
    def function(x: torch.Tensor) -> torch.Tensor:
        y = x.sin()
        part = y[:, :2]
        y.exp_()
        return part.cos()

    assert inputs(trace(function), "cos") == {"exp_"}


def test_memory_without_values_is_no_result():
    def function(x: torch.Tensor) -> torch.Tensor:
        y = torch.empty_like(x)
        y[:, :2], y[:, 2:] = x.sin()[:, :2], x.cos()[:, 2:]
        return y.exp()

    found = trace(function)
    assert "empty_like" not in names(found)
    assert inputs(found, "exp") == {"copy_"}
    exp = found.operations[-1]
    assert len(exp.inputs) == 2


@pytest.mark.parametrize(
    "unseen",
    [
        lambda: torch.from_numpy(np.full((64, 64), 0.5)),
        lambda: torch.tensor(np.full((64, 64), 0.5).tolist(), dtype=torch.float64),
        lambda: torch.frombuffer(bytearray(8 * 64 * 64), dtype=torch.float64).reshape(64, 64),
    ],
    ids=["from_numpy", "tensor", "frombuffer"],
)
def test_a_tensor_at_the_address_of_a_freed_one_is_not_taken_for_it(unseen: Callable[[], torch.Tensor]):
    """Tensors that are made outside of operations are not recorded; their memory may have been another tensor's."""
    big = np.random.RandomState(0).standard_normal((64, 64))
    reused = []

    def function(x: torch.Tensor) -> torch.Tensor:
        total = x.cos()
        for _ in range(20):
            freed = x.sin()
            address = freed.data_ptr()
            total = total + freed
            del freed
            constant = unseen()
            reused.append(constant.data_ptr() == address)
            total = total * constant
            del constant
        return total

    found = trace(function, big)
    for operation in found.operations:
        if operation.name == "mul":
            assert {found.operations[i].name for i in operation.inputs} == {"add"}


def test_a_storage_that_takes_a_freed_address_is_another():
    """The same with memory that is certainly reused."""
    memory = np.zeros(64 * 64)

    def function(x: torch.Tensor) -> torch.Tensor:
        first = torch.from_numpy(memory).reshape(64, 64)
        first.copy_(x.sin())
        y = first.exp()
        del first
        gc.collect()
        memory[:] = 0.5
        return y * torch.from_numpy(memory).reshape(64, 64)

    found = trace(function, np.random.RandomState(0).standard_normal((64, 64)))
    assert inputs(found, "exp") == {"copy_"}
    assert inputs(found, "mul") == {"exp"}


def test_weights_are_computed_from_nothing():
    found = trace(lambda fc, x: fc(x.sin()), fc=torch.nn.Linear(4, 5))
    assert inputs(found, "addmm") == {"sin"}


def test_no_memory_is_held():
    """Only fingerprints stay: a run of a thousand operations on a megabyte needs a few megabytes."""

    def function(x: torch.Tensor) -> torch.Tensor:
        storages = []
        for _ in range(20):
            x = x.sin()
            storages.append(torch.multiprocessing.reductions.StorageWeakRef(x.untyped_storage()))
        alive.append(sum(not storage.expired() for storage in storages))
        return x

    alive: list[int] = []
    trace(function, np.zeros((256, 512)) + 0.5)
    assert alive == [1]


def test_modules_and_their_calls():
    fc, norm = torch.nn.Linear(4, 4), torch.nn.LayerNorm(4)
    found = trace(lambda fc, norm, x: norm(fc(fc(x)).tanh()), fc=fc, norm=norm)
    assert [call.key for call in found.calls] == [("fc", 0), ("fc", 1), ("norm", 0), ("", 0)]
    first, second, last, whole = found.calls
    assert [(x.owner, x.name) for x in found.operations] == [
        (("fc", 0), "addmm"),
        (("fc", 1), "addmm"),
        (("", 0), "tanh"),
        (("norm", 0), "native_layer_norm"),
    ] + [(("norm", 0), "native_layer_norm")] * (len(found.operations) - 4)  # mean and deviation
    assert first.operations == range(0, 1)
    assert second.operations == range(1, 2)
    assert whole.operations == range(0, len(found.operations))
    assert second.inputs[0].operations == first.outputs[0].operations == {0}
    assert last.outputs[0].operations == whole.outputs[0].operations == {3}
    assert first.inputs[0].operations == frozenset()


def test_tensors_of_a_call_have_their_positions():
    class Two(torch.nn.Module):
        def forward(self, x: torch.Tensor, ids: torch.Tensor, *, y: torch.Tensor) -> Any:
            return {"a": x + y, "n": ids + 1, "z": x * y}

    found = trace(lambda two, x: two(x.sin(), torch.arange(3), y=x.cos())["z"], two=Two())
    call = found.calls[0]
    assert [x.index for x in call.inputs] == [0, 2]
    assert [x.index for x in call.outputs] == [0, 2]


def test_values_of_operations_are_those_of_the_trace():
    def function(fc: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        a, b = fc(x).chunk(2, -1)
        return a.softmax(-1) * b

    side = TorchSide.of(Function(function, fc=torch.nn.Linear(4, 6)), "float64")
    found = trace_torch(side, [X])
    values = operation_values(side, [X], range(len(found.operations)))
    assert values.keys() == set(range(len(found.operations)))
    for i, operation in enumerate(found.operations):
        assert values[i].result.shape == operation.shape
        assert operation.values.matches(Fingerprint.of(values[i].result).sums)


def test_integers_and_scalars_are_passed_through():
    found = trace(lambda x: x / x.max() + (x.sum() > 0))
    assert names(found)[0] == "div"
    assert all(len(operation.shape) for operation in found.operations)


def test_the_model_is_left_as_it_was():
    side = TorchSide.of(Function(lambda fc, x: fc(x), fc=torch.nn.Linear(4, 6)), "float64")
    trace_torch(side, [X])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in side.model.modules())


def test_an_operation_again_with_another_value():
    """Also of one that takes the second of several results."""
    function = lambda x: x.sin().mul(2).chunk(2, -1)[1].cos()  # noqa: E731
    side = TorchSide.of(Function(function), "float64")
    found = trace(function)
    wanted = {i for i, x in enumerate(found.operations) if x.name in ("mul", "cos")}
    values = operation_values(side, (X,), wanted)
    product, cosine = (values[i] for i in sorted(wanted))
    np.testing.assert_allclose(product.given[0], np.sin(X))
    np.testing.assert_allclose(product.again(0, X), 2 * X)
    np.testing.assert_allclose(product.again(0, X + 1), 2 * (X + 1))
    np.testing.assert_allclose(cosine.again(0, X[:, 2:]), np.cos(X[:, 2:]))
    instead = operation_values(side, (X,), wanted, instead=(product.call, 0, X))
    np.testing.assert_allclose(instead[max(wanted)].result, np.cos(2 * X[:, 2:]))
    with pytest.raises(RuntimeError):
        cosine.again(0, X)
