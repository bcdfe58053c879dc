"""Where values first differ: the operations, their module, what they are computed from, where the result goes."""

from __future__ import annotations

import jax.numpy as jnp
import torch

from parity.recording.capture import ROOT
from parity.trace.regions import Region, first_regions, known_behind, missing, name, receiver, returned
from parity.trace.values.match import Matches, match
from parity.trace.values.program import traced
from parity.trace.values.torch_operations import TorchTrace, trace_torch
from tests.support.parity.traced import Sides, linear, planted, tokens, zero_linear


def matched(sides: Sides) -> tuple[TorchTrace, Matches]:
    trace = trace_torch(sides.ours, sides.arrays)
    with sides.theirs.switches():
        return trace, match(trace, traced(sides.theirs, sides.arrays), {})


def regions(**wrong: str) -> tuple[TorchTrace, Matches, list[Region]]:
    trace, matches = matched(planted(**wrong))
    return trace, matches, first_regions(trace, matches)


def test_a_right_port_has_none():
    trace, matches, found = regions()
    assert found == []
    assert missing(trace, matches) == set()


def test_the_first_that_differs():
    trace, matches, (region,) = regions(block1="softmax")
    names = [trace.operations[i].name for i in region.operations]
    assert names[0] == "_softmax"
    assert region.owner == ("blocks.1.attn", 0)
    assert trace.operations[region.ends[-1]].shape == tokens().shape
    wrong = missing(trace, matches)
    assert min(wrong) == region.operations[0]
    assert wrong > set(region.operations)  # and all that follows


def test_what_a_region_is_computed_from():
    trace, matches, (region,) = regions(block1="softmax")
    logits = max(trace.operations[region.operations[0]].inputs)
    assert set(matches.operations[logits][:1]) <= region.known
    assert known_behind(trace, matches, [region.operations[0]]) < region.known  # not of the values v
    assert known_behind(trace, matches, [0]) == frozenset()


def test_where_the_result_goes():
    trace, _, (region,) = regions(block1="softmax")
    call, tensor = receiver(trace, region, region.ends[-1])
    assert call.key == ("blocks.1.attn.proj", 0)
    assert tensor.index == 0
    assert returned(trace, region, region.ends[-1]) is None


def test_what_a_module_returns():
    trace, _, (region,) = regions(block1="eps")
    call, tensor = returned(trace, region, region.ends[0])
    assert call.key == region.owner == ("blocks.1.norm1", 0)
    assert tensor.index == 0


def test_only_the_first_of_two_in_a_row():
    trace, _, (region,) = regions(block0="gelu", block2="eps")
    assert region.owner == ("blocks.0", 0)
    assert next(trace.operations[i].name for i in region.operations) == "gelu"


def test_an_operation_that_jax_lacks_is_passed_over():
    trace, matches, (region,) = regions(block1="softmax")
    (after,) = first_regions(trace, matches, absent=region.operations)
    assert after.owner == ("blocks.1.attn.proj", 0)


class Branches(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.sin()
        return torch.tanh(self.a(x)) + torch.exp(self.b(x))


def branches(p, x):
    x = jnp.sin(x)
    return jnp.sinh(linear(p["a"], x)) + jnp.exp2(linear(p["b"], x))


def test_differences_side_by_side_are_found_together():
    params = {"a": zero_linear(8, 8), "b": zero_linear(8, 8)}
    trace, matches = matched(Sides.of(Branches(), branches, params, tokens()))
    found = first_regions(trace, matches)
    assert [trace.operations[region.operations[0]].name for region in found] in (["tanh", "exp"], ["tanh"])
    assert all(region.owner == ROOT for region in found)


class Unused(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.exp().cos()  # leads nowhere
        return self.fc(x)


def test_what_does_not_lead_to_the_output_does_not_count():
    sides = Sides.of(Unused(), lambda p, x: linear(p["fc"], x), {"fc": zero_linear(8, 8)}, tokens())
    trace, matches = matched(sides)
    assert [op.name for op in trace.operations][:2] == ["exp", "cos"]
    assert first_regions(trace, matches) == []


def test_other_steps_to_equal_values_are_no_difference():
    """log(softmax(x)) in PyTorch, x - logsumexp(x) in JAX: the value between is missing, its result is not."""

    class Log(Unused):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x).softmax(-1).log()

    def function(p, x):
        x = linear(p["fc"], x)
        return x - jnp.log(jnp.exp(x).sum(-1, keepdims=True))

    trace, matches = matched(Sides.of(Log(), function, {"fc": zero_linear(8, 8)}, tokens()))
    softmax = [op.name for op in trace.operations].index("_softmax")
    assert not matches.operations[softmax]
    assert missing(trace, matches) == set()


def test_names_of_calls():
    assert name(("blocks.0", 0)) == "blocks.0"
    assert name(("blocks.0", 2)) == "blocks.0#3"
    assert name(ROOT) == ""
