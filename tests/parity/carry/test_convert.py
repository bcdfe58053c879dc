"""Weights carried there and back: bit for bit, every tensor once, or not at all."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import t2t_jax
import t2t_torch
from parity import Entry, Ledger, Rules, build_ledger, jax_to_torch, torch_to_jax
from parity.carry.convert import as_dtype, jax_variables, state_equal, to_numpy, to_tensor, torch_arrays
from t2t_config import MODELS
from tests.support.parity import trees
from tests.support.parity.pairs import FlaxResNet, FlaxTwice, TorchResNet, TorchTwice, micro, resnet, twice
from tests.support.profiles import examples

OFFICIAL = [name for name, config in MODELS.items() if name.startswith("t2t_") and config.in_paper]


def bits(model: nnx.Module) -> dict[str, bytes]:
    return {name: np.asarray(variable[...]).tobytes() for name, variable in jax_variables(model).items()}


# ---- there and back ----


@pytest.mark.parametrize("name", [*OFFICIAL, "vit_deit_tiny_distilled_patch16_224"])
def test_round_trips_are_bit_for_bit(name: str):
    """PyTorch -> JAX -> PyTorch and JAX -> PyTorch -> JAX, at full size, with random bits in every tensor."""
    with torch.device("meta"):
        source, target = t2t_torch.create_model(name), t2t_torch.create_model(name)
    generator = torch.Generator().manual_seed(0)
    state = {key: torch.randn(value.shape, generator=generator) for key, value in source.state_dict().items()}
    there, again = (nnx.eval_shape(lambda: t2t_jax.create_model(name)) for _ in range(2))
    ledger = torch_to_jax(state, there)
    assert [entry.torch for entry in ledger] == list(state)
    assert len({entry.jax for entry in ledger}) == len(jax_variables(there)) == len(state)
    target.to_empty(device="cpu")
    jax_to_torch(there, target)
    assert all(torch.equal(value, state[key]) for key, value in target.state_dict().items())
    torch_to_jax(target, again)
    assert bits(again) == bits(there)
    assert state_equal(ledger, target, there) == []


SEEDS = st.integers(0, 2**31)


@examples(30)
@given(trees.TREES, st.sampled_from(list(trees.DTYPES)), SEEDS)
def test_any_tree_of_modules_comes_back_bit_for_bit(tree: trees.Branch, dtype: torch.dtype, seed: int):
    """All layer types, lists, dicts, stacks, names that are prefixes of each other; any bits, NaN's too."""
    with jax.enable_x64(True):
        rules = trees.tree_rules(tree)
        source, target = trees.torch_tree(tree), trees.torch_tree(tree)
        trees.fill_torch(source, dtype, seed)
        there, again = trees.flax_tree(tree), trees.flax_tree(tree)
        ledger = torch_to_jax(source, there, rules=rules)
        assert {entry.torch for entry in ledger} | set(ledger.torch_only) == source.state_dict().keys()
        assert {entry.jax for entry in ledger} == jax_variables(there).keys()
        jax_to_torch(there, target, rules=rules)
        assert trees.torch_bits(target) == trees.torch_bits(source)
        assert state_equal(ledger, target, there) == []

        trees.fill_flax(there, dtype, seed + 1)
        jax_to_torch(there, source, rules=rules)
        torch_to_jax(source, again, rules=rules)
        assert trees.flax_bits(again) == trees.flax_bits(there)


DTYPES = {
    **trees.DTYPES,
    torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn,
    torch.float8_e5m2: ml_dtypes.float8_e5m2,
}


@pytest.mark.parametrize("dtype", trees.DTYPES)
def test_dtypes_are_carried_too(x64: None, dtype: torch.dtype):
    source, model = resnet()
    source.to(dtype)
    with torch.no_grad():
        source.stem.weight[0, 0, 0] = torch.tensor([float("nan"), float("-inf"), -0.0]).to(dtype)
    ledger = torch_to_jax(source, model)
    assert {v.dtype for v in jax_variables(model).values()} == {np.dtype(DTYPES[dtype])}
    target = TorchResNet()
    jax_to_torch(model, target)
    for key, value in target.state_dict().items():
        expected = source.state_dict()[key]
        assert value.dtype == expected.dtype
        assert to_numpy(value).tobytes() == to_numpy(expected).tobytes() or key.endswith("num_batches_tracked")
    assert state_equal(ledger, source, model) == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_and_back(dtype: torch.dtype):
    tensor = torch.randn(3, 4).to(dtype).T
    array = to_numpy(tensor)
    assert array.dtype == DTYPES[dtype]
    np.testing.assert_array_equal(array.astype(np.float64), tensor.double())
    assert to_tensor(array).dtype == dtype
    assert to_tensor(array).is_contiguous()
    assert torch.equal(to_tensor(array).double(), tensor.double())
    assert to_tensor(array).untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()


def test_float64_without_64_bit_types_is_an_error_and_changes_nothing():
    source, model = twice()
    before = bits(model)
    with torch.no_grad():
        source.fc.weight += 1
    source.norm.double()  # the layers before it would have been carried already
    message = (
        r"^norm\.(scale|bias) is float64, which JAX holds only with jax_enable_x64: switch it on, or pass cast=True to "
        r"round to the model's own dtype$"
    )
    with pytest.raises(ValueError, match=message):
        torch_to_jax(source, model)
    assert bits(model) == before


def test_cast_keeps_the_models_own_dtype():
    source, model = twice()
    source.double()
    with torch.no_grad():
        source.fc.weight += 1 / 3
    torch_to_jax(source, model, cast=True)
    np.testing.assert_array_equal(model.fc.kernel[...], source.fc.weight.detach().float().T)
    assert model.fc.kernel.dtype == jnp.float32
    low = as_dtype(model, jnp.bfloat16)
    torch_to_jax(source, low, cast=True)
    assert {variable.dtype for variable in jax_variables(low).values()} == {np.dtype(jnp.bfloat16)}
    jax_to_torch(low, source, cast=True)
    assert source.fc.weight.dtype == torch.float64
    assert torch.equal(source.fc.weight, to_tensor(np.asarray(low.fc.kernel[...])).T.double())


def test_jax_to_torch_keeps_parameters_in_their_places():
    """An optimiser that holds the parameters sees the new values."""
    target, model = twice()
    held = list(target.parameters())
    model.fc.kernel[...] = model.fc.kernel[...] + 1
    jax_to_torch(model, target)
    assert all(a is b for a, b in zip(held, target.parameters(), strict=True))
    assert torch.equal(held[0], to_tensor(np.asarray(model.fc.kernel[...])).T)


def test_a_model_without_memory_holds_no_weights():
    """A model on the device meta would take them, and lose them."""
    target = torch.nn.Linear(6, 6, device="meta", dtype=torch.float64)
    with pytest.raises(ValueError, match=r"2 tensors .*: weight is on the device meta, .*to_empty.*; bias is on the"):
        jax_to_torch(nnx.Linear(6, 6, rngs=nnx.Rngs(0)), target)
    with pytest.raises(ValueError, match="weight of PyTorch is on the device meta"):
        torch_to_jax(target, nnx.Linear(6, 6, rngs=nnx.Rngs(0)))
    assert {(p.device.type, p.dtype) for p in target.parameters()} == {("meta", torch.float64)}


def test_arrays_of_some_tensors_are_those_of_pytorch_too():
    ledger = build_ledger(*twice())
    bias = np.arange(6.0)
    found = torch_arrays(ledger, {"norm.bias": bias})
    assert found.keys() == {"norm.bias"}
    np.testing.assert_array_equal(found["norm.bias"], bias)


def test_a_converted_model_does_not_share_memory():
    source, model = twice()
    before = bits(model)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter += 1
    assert bits(model) == before


def test_batch_counts_stay_in_pytorch():
    source, model = resnet()
    source.bn1.num_batches_tracked += 7
    ledger = torch_to_jax(source, model)
    assert ledger.torch_only == ("bn1.num_batches_tracked", "bn2.num_batches_tracked")
    np.testing.assert_array_equal(model.bn1.var[...], source.bn1.running_var)
    np.testing.assert_array_equal(model.bn1.mean[...], source.bn1.running_mean)
    jax_to_torch(model, source)
    assert source.bn1.num_batches_tracked == 7


def test_a_scalar_stays_a_scalar():
    """As a temperature is; `np.ascontiguousarray` would make a vector of it."""
    source, target, model = torch.nn.Module(), torch.nn.Module(), nnx.Module()
    source.scale, target.scale = (torch.nn.Parameter(torch.tensor(x)) for x in (3.0, 0.0))
    model.scale = nnx.Param(jnp.zeros(()))
    torch_to_jax(source, model)
    assert (model.scale.shape, float(model.scale[...])) == ((), 3.0)
    jax_to_torch(model, target)
    assert target.scale.item() == 3


def test_tensors_in_plain_containers_are_carried():
    model = nnx.Module()
    model.found = nnx.data({"a": nnx.Param(jnp.ones(2)), "b": [nnx.Linear(2, 3, rngs=nnx.Rngs(0))]})
    state = {"found.a": torch.zeros(2), "found.b.0.weight": torch.zeros(3, 2), "found.b.0.bias": torch.zeros(3)}
    assert [entry.layer for entry in torch_to_jax(state, model)] == ["Module", "Linear", "Linear"]
    assert not any(np.any(variable[...]) for variable in jax_variables(model).values())


# ---- rules ----


def test_renames_reach_every_tensor():
    class Outer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = TorchTwice()

    ledger = torch_to_jax(Outer(), nnx.eval_shape(FlaxTwice), rules=Rules(rename={r"^backbone\.": ""}))
    assert {entry.torch: entry.jax for entry in ledger} == {
        "backbone.fc.weight": "fc.kernel",
        "backbone.fc.bias": "fc.bias",
        "backbone.norm.weight": "norm.scale",
        "backbone.norm.bias": "norm.bias",
    }


def test_partners_may_be_missing_on_purpose_only():
    state = {**TorchTwice().state_dict(), "queue": torch.zeros(3)}
    model = nnx.eval_shape(FlaxTwice)
    model.table = nnx.Variable(jnp.zeros(4))
    with pytest.raises(ValueError, match="2 tensors"):
        build_ledger(state, model)
    ledger = build_ledger(state, model, Rules(torch_only=["queue"], jax_only=["tab*"]))
    assert (ledger.torch_only, ledger.jax_only) == (("queue",), ("table",))
    assert "queue only in PyTorch" in str(ledger)
    assert "fc.weight [6, 6] <-> fc.kernel [6, 6] transposed (1, 0) float32" in str(ledger)


def test_a_ledger_in_words():
    like = {"layer": "Linear", "dtype": "float32"}
    entries = (
        Entry("head.bias", "head.bias", axes=None, torch_shape=(4,), jax_shape=(4,), **like),
        Entry("qkv", "query", axes=(1, 0), torch_shape=(6, 3), jax_shape=(3, 3), part=(0, 2), **like),
        Entry("fc.1.weight", "fc.kernel", axes=(1, 0), torch_shape=(2, 3), jax_shape=(5, 3, 2), index=1, **like),
    )
    assert str(Ledger(entries, ("count",), ("cache", "key"))).splitlines() == [
        "head.bias [4] <-> head.bias [4] float32",
        "qkv [6, 3] <-> query [3, 3] transposed (1, 0) part 1 of 2 float32",
        "fc.1.weight [2, 3] <-> fc.kernel [5, 3, 2] transposed (1, 0) layer 1 float32",
        "count only in PyTorch",
        "cache only in JAX",
        "key only in JAX",
    ]


def stacked_linear(layers: int) -> nnx.Module:
    return nnx.vmap(lambda rngs: nnx.Linear(4, 4, rngs=rngs))(nnx.Rngs(0).split(layers))


def test_stacked_layers_are_carried_one_by_one():
    class Stack(nnx.Module):
        def __init__(self, layers: int) -> None:
            self.blocks = nnx.eval_shape(lambda: stacked_linear(layers))

    source, rules = torch.nn.Module(), Rules(stacked={"blocks": "blocks"})
    source.blocks = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3))
    model = Stack(3)
    ledger = torch_to_jax(source, model, rules=rules)
    assert len(ledger) == 6
    for i in range(3):
        np.testing.assert_array_equal(model.blocks.kernel[...][i], source.blocks[i].weight.detach().T)
    again = torch.nn.Module()
    again.blocks = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3))
    jax_to_torch(model, again, rules=rules)
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in again.state_dict().items())
    with pytest.raises(ValueError, match=r"blocks.kernel of JAX has 4 layers, PyTorch fills 3"):
        build_ledger(source, Stack(4), rules)
    with pytest.raises(ValueError, match=r"blocks\.2\.weight"):
        build_ledger(source, Stack(2), rules)
    model.blocks.extra = nnx.Param(jnp.zeros(()))  # has no layers
    with pytest.raises(ValueError, match=r"blocks\.1\.extra \[\] does not fit blocks\.extra \[\]"):
        build_ledger({**source.state_dict(), "blocks.1.extra": torch.zeros(())}, model, rules)


# ---- copies in another precision ----


def test_as_dtype_is_a_copy_in_which_everything_changes(x64: None):
    _, model = micro()
    before = bits(model)
    double = as_dtype(model, jnp.float64)
    assert {v.dtype for v in jax_variables(double).values()} == {np.dtype(np.float64)}
    assert bits(model) == before
    assert type(double) is type(model)
    low = nnx.Linear(2, 3, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert as_dtype(low, jnp.float64)(jnp.zeros(2)).dtype == np.float64
    assert as_dtype(low, jnp.float64).param_dtype == jnp.float64
    assert low(jnp.zeros(2)).dtype == jnp.bfloat16


def test_as_dtype_changes_floating_numbers_alone():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    model.places = nnx.Variable(jnp.arange(3))
    low = as_dtype(model, jnp.bfloat16)
    dtypes = {name: variable.dtype for name, variable in jax_variables(low).items()}
    assert dtypes == {"bias": jnp.bfloat16, "kernel": jnp.bfloat16, "places": jnp.int32}
    np.testing.assert_array_equal(low.kernel[...], model.kernel[...].astype(jnp.bfloat16))
    assert (low.dtype, low.param_dtype) == (None, jnp.bfloat16)  # None: that of the inputs and parameters


def test_state_equal_sees_a_single_bit():
    source, model = twice()
    ledger = build_ledger(source, model)
    with torch.no_grad():
        source.fc.weight[1, 2] = torch.nextafter(source.fc.weight[1, 2], torch.tensor(9.0))
        source.norm.bias[0] = -source.norm.bias[0]
    assert state_equal(ledger, source, model) == ["fc.weight", "norm.bias"]


def test_flax_models_of_the_same_weights_keep_their_ledger():
    assert str(build_ledger(TorchResNet(), nnx.eval_shape(FlaxResNet))) == str(build_ledger(*resnet()))
