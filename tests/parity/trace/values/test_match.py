"""Values of PyTorch's operations are found among JAX's, in any layout; others are not."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import torch

from parity.trace.values.layout import Layout
from parity.trace.values.match import Matches, located, match
from parity.trace.values.program import traced
from parity.trace.values.torch_operations import TorchTrace, trace_torch
from tests.support.parity.traced import Sides, Transformer, linear, planted, tokens, zero_linear, zeros


def matched(sides: Sides, replaced: dict[int, tuple[np.ndarray, Layout]] | None = None) -> tuple[TorchTrace, Matches]:
    trace = trace_torch(sides.ours, sides.arrays)
    with sides.theirs.switches():
        return trace, match(trace, traced(sides.theirs, sides.arrays), replaced or {})


def test_every_operation_of_a_right_port_has_its_value():
    trace, found = matched(planted())
    missing = [op.name for op, numbers in zip(trace.operations, found.operations, strict=True) if not numbers]
    assert set(missing) <= {"native_layer_norm"}  # its mean and its deviation, which JAX computes in other ways
    assert all(found.outputs[call.key, 0] for call in trace.calls)
    assert all(located(call, found) for call in trace.calls)


def test_nothing_after_a_mistake_has():
    trace, found = matched(planted(block1="gelu"))
    calls = {call.key[0]: located(call, found) for call in trace.calls}
    assert calls["blocks.0"] is not None
    assert calls["blocks.1.fc1"] is not None
    for name in ("blocks.1.fc2", "blocks.1", "blocks.2.norm1", "blocks.2", "head", ""):
        assert calls[name] is None, name


def test_what_a_value_is_and_what_follows_from_it():
    trace, found = matched(planted())
    softmax = next(i for i, op in enumerate(trace.operations) if op.name == "_softmax")
    number = found.operations[softmax][0]
    assert found.values[number].eqn.primitive.name == "div"
    assert not found.values[number].rearranges
    assert found.values[number].shape == trace.operations[softmax].shape
    following = found.descend([number])
    assert number in following
    assert min(following) == number
    assert found.operations[-1][0] in following
    assert found.descend([]) == set()


def test_a_replaced_value_repairs_what_follows():
    sides = planted(block1="gelu")
    trace, found = matched(sides)
    right, _ = matched(planted())
    gelu = [i for i, op in enumerate(trace.operations) if op.name == "gelu"][1]
    assert not found.operations[gelu]
    oracle = sides.ours.forward(sides.arrays)[("blocks.1.fc2", 0)].inputs[0]
    fc1 = found.outputs[("blocks.1.fc1", 0), 0][-1]
    numbers = [n for n in found.descend([fc1]) if n > fc1 and found.values[n].shape == oracle.shape]
    wrong = max(n for n in numbers if found.values[n].eqn.primitive.name == "mul" and n < min(numbers) + 12)
    layout = Layout(oracle.shape, (0, 1, 2), oracle.shape)
    _, repaired = matched(sides, {wrong: (oracle, layout)})
    assert repaired.operations[gelu]
    assert all(located(call, repaired) for call in trace.calls)
    assert len(right.operations) == len(trace.operations)


class Two(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.first(x)) + torch.tanh(self.second(x))


def two(params, x):
    return jnp.tanh(linear(params["first"], x)) + jnp.tanh(linear(params["second"], x))


def test_equal_values_match_all_their_equals():
    """Two layers with the same weights: the values of each are found, and none is missing."""
    sides = Sides.of(Two(), two, {"first": zero_linear(8, 8), "second": zero_linear(8, 8)}, tokens(), tied=True)
    _trace, found = matched(sides)
    assert all(found.operations)
    assert len(found.outputs[("first", 0), 0]) >= 2


def test_broadcast_values_are_found():
    class Added(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x) + x.mean(1, keepdim=True).expand_as(x).clone()

    function = lambda p, x: linear(p["fc"], x) + x.mean(1, keepdims=True)  # noqa: E731
    trace, found = matched(Sides.of(Added(), function, {"fc": zero_linear(8, 8)}, tokens()))
    assert "clone" in [op.name for op in trace.operations]
    assert all(found.operations)


def test_integers_are_no_values():
    class Embedding(torch.nn.Embedding):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x + 1)

    ids = np.arange(6).reshape(2, 3)
    sides = Sides.of(Embedding(8, 4), lambda p, x: p["w"][x + 1], {"w": np.zeros((8, 4))}, ids)
    trace, found = matched(sides)
    assert [op.name for op in trace.operations] == ["embedding"]
    assert found.operations[0]


def test_modules_without_floating_outputs_are_not_located():
    trace, found = matched(Sides.of(Transformer(), lambda p, x: linear(p["head"], x[:, 0]), zeros(), tokens()))
    assert [call.key[0] for call in trace.calls if located(call, found)] == []
