"""Blocks as a stack and as a list: the same model, also where it drops."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t2t_jax import create_model
from t2t_jax.models.scan_blocks import (
    is_stacked,
    stack_arrays,
    stack_blocks,
    tensor_shape,
    unstack_arrays,
    unstack_blocks,
)
from t2t_jax.state import Arrays, load_arrays, merge_model, model_arrays, split_model
from tests.support.families import FAMILIES
from tests.support.jax_models import abstract, normal

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
SIZES = {"img_size": 16, "in_chans": 1, "num_classes": 3}
DROPS = {"drop_rate": 0.1, "attn_drop_rate": 0.1, "drop_path_rate": 0.4}


def both(kind: str, **changes: Any) -> tuple[Any, Any]:
    """The model of a kind with three blocks, as a list and as a stack; shapes only."""
    name, sizes = FAMILIES[kind]
    sizes = {**sizes, "depth": 3, **DROPS, **changes}
    return abstract(lambda: create_model(name, **sizes)), abstract(
        lambda: create_model(name, **sizes, scan_blocks=True)
    )


def drawn(model: Any) -> Arrays:
    """Random arrays for an unrolled model, in its own dtypes."""
    draws = np.random.RandomState(0)
    found = nnx.to_flat_state(nnx.state(model))
    return {".".join(map(str, path)): 0.2 * draws.standard_normal(v.shape).astype(v.dtype) for path, v in found}


def loss_and_grads(model: Any, arrays: Arrays, key: jax.Array | None) -> tuple[jax.Array, Arrays]:
    """Of some loss, with dropout drawn from `key`; gradients by the names of a list of blocks."""
    model.eval() if key is None else model.train()
    graphdef, params, _ = split_model(model)
    if any(map(is_stacked, params)):
        arrays = stack_arrays(arrays)
    buffers = {name: array for name, array in arrays.items() if name not in params}
    x = normal(2, 32, 48, 3, dtype=np.float64)

    def loss(params: Arrays) -> jax.Array:
        merged = merge_model(graphdef, {**params, **buffers})
        rngs = None if key is None else nnx.Rngs(dropout=key)
        logits = merged(x, rngs=rngs)
        total = sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(logits))
        # What is drawn after the blocks shows whether they drew as many keys.
        return total if rngs is None else total + jax.random.normal(rngs.dropout(), (), x.dtype)

    value, grads = jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)({name: arrays[name] for name in params})
    return value, unstack_arrays(grads)


def assert_same(ours: tuple[jax.Array, Arrays], reference: tuple[jax.Array, Arrays], tolerance: float) -> None:
    np.testing.assert_allclose(ours[0], reference[0], rtol=tolerance)
    assert ours[1].keys() == reference[1].keys()
    total = float(np.sqrt(sum(np.sum(np.square(g)) for g in reference[1].values())))
    for name, grad in reference[1].items():
        assert np.linalg.norm(ours[1][name] - grad) <= tolerance * total, name


def compare(kind: str, key: jax.Array | None, **changes: Any) -> None:
    unrolled, scanned = both(kind, **changes, param_dtype=jnp.float64)
    arrays = drawn(unrolled)
    assert_same(loss_and_grads(scanned, arrays, key), loss_and_grads(unrolled, arrays, key), 1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", ["convolution", "se", "ghost", "resnext", "distilled"])
def test_a_stack_computes_what_the_list_computes_and_drops_what_it_drops(kind: str):
    """In float64: a mask that differs, or another key for one block, would change the loss in its first digits."""
    compare(kind, jax.random.key(3, impl="rbg"))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("drops", [{"drop_path_rate": 0.0}, {"drop_rate": 0.0, "attn_drop_rate": 0.0}])
def test_without_some_of_the_dropouts(drops: dict[str, float]):
    """With one rate for all blocks nothing is left to the program; stochastic depth alone draws none in block 0."""
    compare("distilled", jax.random.key(4, impl="rbg"), **drops)


@pytest.mark.usefixtures("x64")
def test_in_evaluation_nothing_is_dropped():
    compare("convolution", None)


def test_bfloat16_computes_low():
    unrolled, scanned = both("distilled", dtype=jnp.bfloat16)
    arrays = drawn(unrolled)

    def logits(model: Any, arrays: Arrays) -> jax.Array:
        graphdef = split_model(model)[0]
        return jax.jit(lambda arrays, x: merge_model(graphdef, arrays)(x))(arrays, normal(2, 32, 48, 3))

    ours, theirs = logits(scanned, stack_arrays(arrays)), logits(unrolled, arrays)
    assert ours.dtype == theirs.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(ours), np.float32(theirs), atol=0.03 * np.abs(np.float32(theirs)).max())


def test_the_program_holds_one_block_however_many_there_are():
    def size(depth: int) -> int:
        model = both("convolution", depth=depth)[1]
        graphdef, params, buffers = split_model(model)
        images = jax.ShapeDtypeStruct((2, 32, 48, 3), jnp.float32)
        text = str(jax.make_jaxpr(lambda arrays, x: merge_model(graphdef, arrays)(x))({**params, **buffers}, images))
        return text.count("dot_general")

    assert size(2) == size(9) < 12


def test_parameters_are_those_of_the_list_with_an_axis_in_front():
    unrolled, scanned = both("se")
    _, params, buffers = split_model(scanned)
    assert params["blocks.attn.se_layer.fc.0.kernel"].shape == (3, 16, 1)
    assert params["blocks.norm1.scale"].shape == (3, 16)
    assert params["norm.scale"].shape == (16,)
    assert buffers.keys() == split_model(unrolled)[2].keys()


def test_a_stack_begins_with_the_weights_of_the_list():
    unrolled, scanned = (create_model("t2t_vit_micro", **SIZES, scan_blocks=scan) for scan in (False, True))
    chex.assert_trees_all_equal(model_arrays(scanned), model_arrays(unrolled))
    assert list(model_arrays(scanned)) == list(model_arrays(unrolled))


def test_models_are_stacked_and_unstacked_again():
    model = create_model("t2t_vit_micro", **SIZES, drop_path_rate=0.3)
    before, arrays = nnx.split(model)[0], model_arrays(model)
    again = unstack_blocks(stack_blocks(model))
    assert nnx.split(again)[0] == before
    chex.assert_trees_all_equal(model_arrays(again), arrays)
    assert [block.drop_path.rate for block in again.blocks] == pytest.approx([0.0, 0.3])
    assert unstack_blocks(again) is again


def test_arrays_are_stacked_and_unstacked_again():
    arrays = {"a": np.ones(2), **{f"blocks.{i}.x.{leaf}": np.full((2,), i) for i in range(11) for leaf in ("b", "c")}}
    stacked = stack_arrays(arrays)
    assert list(stacked) == ["a", "blocks.x.b", "blocks.x.c"]
    assert isinstance(stacked["blocks.x.c"], np.ndarray)
    assert stacked["blocks.x.c"][:, 0].tolist() == list(range(11))  # in the order of numbers, not of names
    chex.assert_trees_all_equal(unstack_arrays(stacked), arrays)
    assert list(unstack_arrays(stacked)) == list(arrays)
    for function, given in ((unstack_arrays, arrays), (stack_arrays, stacked)):
        chex.assert_trees_all_equal(function(given), given)


def test_names_of_stacks():
    assert is_stacked("blocks.attn.se_layer.fc.0.kernel")
    for name in ("blocks.3.attn.qkv.kernel", "blocks.0.scale", "norm.scale", "cls_token"):
        assert not is_stacked(name), name
        assert tensor_shape(name, (4, 3)) == (4, 3)
    assert tensor_shape("blocks.norm1.bias", (4, 3)) == (3,)


def test_arrays_of_either_kind_go_into_either_kind():
    unrolled, scanned = (create_model("t2t_vit_micro", **SIZES, scan_blocks=scan) for scan in (False, True))
    wanted = {name: np.asarray(array) + 1 for name, array in model_arrays(unrolled).items()}
    for model, arrays in ((unrolled, stack_arrays(wanted)), (scanned, wanted)):
        load_arrays(model, arrays)
        chex.assert_trees_all_equal(model_arrays(model), wanted)
    del wanted["blocks.1.attn.proj.kernel"]
    with pytest.raises(ValueError, match=r"missing: blocks\.1\.attn\.proj\.kernel"):
        load_arrays(scanned, wanted)


def test_blocks_that_differ_are_refused():
    with pytest.raises(ValueError, match="the blocks of T2TViTDense differ"):
        abstract(lambda: create_model("t2t_vit_dense", **FAMILIES["dense"][1], scan_blocks=True))


def test_training_without_rngs_is_refused():
    model = create_model("t2t_vit_micro", img_size=8, tokens_type="convolution", drop_path_rate=0.1, scan_blocks=True)
    model.train()
    with pytest.raises(ValueError, match="rngs"):
        jax.eval_shape(model, jnp.zeros((1, 8, 8, 3)))
