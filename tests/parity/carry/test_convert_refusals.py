"""What cannot be carried is refused, all of it listed at once, and nothing is changed then."""

from __future__ import annotations

import dataclasses
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from parity import Rules, build_ledger, jax_to_torch, torch_to_jax
from parity.carry.convert import jax_variables, state_equal
from parity.carry.ledger import UnpairedTensorsError
from tests.parity.carry.test_convert import bits, stacked_linear
from tests.support.parity import trees
from tests.support.parity.pairs import FlaxTwice, TorchTwice, twice
from tests.support.profiles import examples


@st.composite
def damaged(draw: st.DrawFn) -> tuple[trees.Branch, list[str], list[str], list[str], list[str]]:
    """A tree, and names of its tensors: those to leave out, to misshape, to claim twice, and unknown ones to add."""
    tree = draw(trees.TREES)
    names = [name for name in trees.torch_tree(tree).state_dict() if not name.endswith("num_batches_tracked")]
    hypothesis.assume(names)
    # `hit` splits them: a name is damaged in one way at most.
    kinds = draw(st.lists(st.integers(0, 3), min_size=len(names), max_size=len(names)).filter(any))
    missing, misshaped, twice = ([n for n, k in zip(names, kinds, strict=True) if k == i] for i in (1, 2, 3))
    endings = draw(st.lists(st.sampled_from(("x", ".x", "_", ".weight", "\u0301")), max_size=2, unique=True))
    unknown = [draw(st.sampled_from(names)) + ending for ending in endings]
    return tree, missing, misshaped, twice, [name for name in unknown if name not in names]


@examples(25)
@given(damaged())
def test_whatever_does_not_fit_is_listed_and_nothing_is_changed(found: tuple[Any, ...]):
    tree, missing, misshaped, twice, unknown = found
    rules, source, model = trees.tree_rules(tree), trees.torch_tree(tree), trees.flax_tree(tree)
    ledger = torch_to_jax(source, model, rules=rules)
    before = trees.flax_bits(model)
    state = {name: tensor + 1 for name, tensor in source.state_dict().items() if name not in missing}
    state |= {name: torch.zeros(*state[name].shape, 2) for name in misshaped}
    state |= {name: torch.zeros(2, 0) for name in unknown}
    # Such names mean their originals, in stacks too.
    state |= {f"twin.{name}": state[name] for name in twice}
    rules = dataclasses.replace(
        rules,
        rename={r"^twin(\.|$)": "", **rules.rename},
        stacked={**rules.stacked, **{f"twin.{path}": path for path in rules.stacked}},
    )
    with pytest.raises(UnpairedTensorsError, match="cannot be carried over") as error:
        torch_to_jax(state, model, rules=rules)
    problems = "; ".join(error.value.problems)
    for name in misshaped:
        assert f"{name} {list(state[name].shape)} does not fit" in problems
    for name in unknown:
        assert f"{name} [2, 0] of PyTorch has no partner in JAX" in problems
    for name in twice:
        assert f"twin.{name} and {name} of PyTorch both claim" in problems
    for entry in ledger:
        if entry.torch in missing:
            alone = f"{entry.jax} {list(entry.jax_shape)} of JAX has no partner in PyTorch"
            assert alone in problems or (entry.index is not None and f"{entry.jax} of JAX has" in problems)
    assert trees.flax_bits(model) == before


def test_a_tensor_of_pytorch_belongs_to_one_of_flax():
    """A `weight` beside a Linear's `kernel`: both would be PyTorch's `weight`."""
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    model.weight = nnx.Param(jnp.ones((2, 2)))
    with pytest.raises(ValueError, match="weight of PyTorch is not whole, and once, in kernel, weight of JAX"):
        build_ledger(torch.nn.Linear(2, 2), model)
    attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=nnx.Rngs(0))
    attention.value.bias = nnx.data(None)
    with pytest.raises(ValueError, match=r"in_proj_bias of PyTorch is not whole, and once, in key.bias, query.bias of"):
        build_ledger(torch.nn.MultiheadAttention(4, 2), attention)


def test_names_that_dots_make_alike_are_an_error():
    inner = [nnx.Linear(2, 2, rngs=nnx.Rngs(0)) for _ in range(2)]
    model = nnx.Dict({"a": nnx.Dict({"b": inner[0]}), "a.b": inner[1]})
    with pytest.raises(ValueError, match=r"two tensors of JAX are called a\.b\.bias"):
        jax_variables(model)


def test_tied_tensors_of_pytorch_take_no_two_values():
    target = torch.nn.ModuleList([torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)])
    target[1].weight = target[0].weight
    model = nnx.List([nnx.Linear(2, 2, use_bias=False, rngs=nnx.Rngs(seed)) for seed in range(2)])
    before = target[0].weight.clone()
    with pytest.raises(ValueError, match=r"0.weight and 1.weight are one tensor in PyTorch and differ in JAX"):
        jax_to_torch(model, target)
    assert torch.equal(target[0].weight, before)
    model[1].kernel.set_value(model[0].kernel[...])
    assert state_equal(jax_to_torch(model, target), target, model) == []


def test_an_empty_tensor_before_tied_ones_hides_nothing():
    target, model = torch.nn.Module(), nnx.Module()
    target.empty = torch.nn.Parameter(torch.ones(0))
    target.first = target.second = torch.nn.Parameter(torch.ones(2))
    for i, (name, size) in enumerate((("empty", 0), ("first", 2), ("second", 2))):
        setattr(model, name, nnx.Param(jnp.full(size, float(i))))
    with pytest.raises(ValueError, match=r"first and second are one tensor in PyTorch and differ in JAX"):
        jax_to_torch(model, target)


def test_what_is_no_tensor_is_listed():
    model = nnx.eval_shape(FlaxTwice)
    model.rate = nnx.Param(0.5)
    state = {**TorchTwice().state_dict(), "epoch": 3, "rate": torch.zeros(())}
    with pytest.raises(
        ValueError, match=r"2 .*:\s+rate of JAX holds a float, not an array;\s+epoch of PyTorch is a int"
    ):
        build_ledger(state, model)
    ledger = build_ledger(
        {**TorchTwice().state_dict(), "epoch": 3}, nnx.eval_shape(FlaxTwice), Rules(torch_only=["epoch"])
    )
    assert ledger.torch_only == ("epoch",)
    ledger = build_ledger({**TorchTwice().state_dict(), "rate": torch.zeros(())}, model, Rules(jax_only=["ra*"]))
    assert "rate" not in ledger.jax_only  # it is claimed
    ledger = build_ledger(TorchTwice().state_dict(), model, Rules(jax_only=["ra*"]))
    assert ledger.jax_only == ("rate",)
    with pytest.raises(ValueError, match=r"^1 tensors .*: fc\.weight of PyTorch is a str, not a tensor$"):
        build_ledger({**TorchTwice().state_dict(), "fc.weight": "lost"}, nnx.eval_shape(FlaxTwice))


def test_only_batch_norms_own_count_stays_in_pytorch_unasked():
    state = {**TorchTwice().state_dict(), "norm.num_batches_tracked": torch.tensor(3)}
    assert build_ledger(state, nnx.eval_shape(FlaxTwice)).torch_only == ("norm.num_batches_tracked",)
    with pytest.raises(ValueError, match=r"norm\.my_num_batches_tracked \[6\]"):
        build_ledger({**state, "norm.my_num_batches_tracked": torch.ones(6)}, nnx.eval_shape(FlaxTwice))


def test_layers_and_parts_of_one_tensor_share_its_dtype(x64: None):
    """Else the bits of some would be rounded to the dtype of the first."""
    source, model = torch.nn.Module(), nnx.Module()
    source.blocks = torch.nn.ModuleList(torch.nn.Linear(4, 4).to(dtype) for dtype in (torch.float32, torch.float64))
    model.blocks = nnx.eval_shape(lambda: stacked_linear(2))
    with pytest.raises(ValueError, match=r"the parts of blocks\.kernel are float32 and float64"):
        torch_to_jax(source, model, rules=Rules(stacked={"blocks": "blocks"}))
    attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=nnx.Rngs(0))
    attention.value.kernel.set_value(attention.value.kernel[...].astype(jnp.bfloat16))
    with pytest.raises(ValueError, match="the parts of in_proj_weight are float32 and bfloat16"):
        jax_to_torch(attention, torch.nn.MultiheadAttention(4, 2))


def test_modules_that_both_share_are_carried_once():
    """flax counts a shared module once, PyTorch under both names: the second is tied."""
    source, model = torch.nn.Module(), nnx.Module()
    source.first = source.again = torch.nn.Linear(2, 3)
    model.first = model.again = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    name = next(iter(jax_variables(model))).partition(".")[0]
    other = {"first": "again", "again": "first"}[name]
    ledger = torch_to_jax(source, model)
    assert sorted(ledger.tied) == [f"{other}.bias", f"{other}.weight"]
    np.testing.assert_array_equal(model.again.kernel[...], source.again.weight.detach().T)
    told = torch_to_jax(source, model, rules=Rules(torch_only=[f"{other}.*"]))
    assert len(ledger) == len(told) == 2
    for rules in (None, Rules(torch_only=[f"{other}.*"])):
        target = torch.nn.Module()
        target.first = target.again = torch.nn.Linear(2, 3)
        jax_to_torch(model, target, rules=rules)
        assert trees.torch_bits(target) == trees.torch_bits(source)


def test_modules_that_one_side_shares_are_not_taken_for_one():
    """PyTorch's are apart, and may train apart: JAX's one cannot hold both."""
    source, model = torch.nn.Module(), nnx.Module()
    source.first, source.again = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    source.again.load_state_dict(source.first.state_dict())
    model.first = model.again = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="of PyTorch both claim"):
        torch_to_jax(source, model)


def test_every_problem_is_listed_at_once_and_nothing_is_changed():
    source, model = twice()
    before = bits(model)
    state = {key: value + 1 for key, value in source.state_dict().items()}
    del state["norm.bias"]
    state["fc.weight"] = torch.zeros(7, 6)
    state["extra.one"], state["extra.two"] = torch.zeros(2), torch.zeros(3)
    with pytest.raises(ValueError, match="4 tensors cannot be carried over") as error:
        torch_to_jax(state, model)
    for problem in (
        "extra.one [2] of PyTorch has no partner",
        "extra.two [3] of PyTorch has no partner",
        "fc.weight [7, 6] does not fit fc.kernel [6, 6]",
        "norm.bias [6] of JAX has no partner",
    ):
        assert problem in str(error.value)
    assert bits(model) == before


def test_nothing_is_changed_in_pytorch_either():
    target, model = twice()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    model.fc.kernel[...] = model.fc.kernel[...] + 1
    model.norm.scale = nnx.Param(jnp.ones(5))
    with pytest.raises(ValueError, match=r"norm.weight \[6\] does not fit norm.scale \[5\]"):
        jax_to_torch(model, target)
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_two_claims_on_one_tensor_are_an_error():
    state = {**TorchTwice().state_dict()}
    state |= {key.replace("fc", "other"): value for key, value in state.items() if key.startswith("fc")}
    with pytest.raises(ValueError, match=r"other.weight and fc.weight of PyTorch both claim fc.kernel"):
        build_ledger(state, nnx.eval_shape(FlaxTwice), Rules(rename={"^other$": "fc"}))


def test_nothing_on_either_side_is_an_error():
    class Empty(nnx.Module):
        def __call__(self, x: jax.Array) -> jax.Array:
            return x

    with pytest.raises(ValueError, match=r"^1 tensors cannot be carried over: there is no tensor on either side$"):
        build_ledger(torch.nn.Identity(), Empty())


def test_a_leaf_of_another_type_is_not_taken():
    """`kernel` belongs to `weight` in a Linear; a bare parameter of that name does not."""

    class Bare(nnx.Module):
        def __init__(self) -> None:
            self.kernel = nnx.Param(jnp.ones((3, 2)))

    with pytest.raises(ValueError, match=r"weight.*kernel"):
        build_ledger({"weight": torch.ones(2, 3)}, Bare())
    assert [entry.axes for entry in build_ledger({"kernel": torch.ones(3, 2)}, Bare())] == [None]


class Counted(torch.nn.Module):
    def __init__(self, count: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("count", count)


class FlaxCounted(nnx.Module):
    def __init__(self, dtype: Any) -> None:
        self.count = nnx.Variable(jnp.zeros((), dtype))


@pytest.mark.parametrize(
    ("number", "dtype", "advised"),
    [(300, jnp.uint8, False), (-1, jnp.uint32, False), (5, jnp.bool_, False), (2**33 + 5, jnp.int32, True)],
)
def test_wider_integers_are_advised_only_where_they_help(number: int, dtype: Any, advised: bool):
    model = FlaxCounted(dtype)
    with pytest.raises(ValueError, match=f"{number} does not fit {np.dtype(dtype)}") as caught:
        torch_to_jax(Counted(torch.tensor(number)), model, cast=True)
    assert ("jax_enable_x64" in str(caught.value)) is advised
    assert not model.count[...]
