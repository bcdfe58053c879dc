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
from t2t_jax.stacked import is_stacked, stack_arrays, stack_blocks, tensor_shape, unstack_arrays, unstack_blocks
from t2t_jax.state import Arrays, load_arrays, merge_model, model_arrays, split_model
from tests.families import FAMILIES
from tests.jax.helpers import abstract, normal

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
DROPS = {"drop_rate": 0.1, "attn_drop_rate": 0.1, "drop_path_rate": 0.4}


def both(kind: str, **changes: Any) -> tuple[Any, Any]:
    """The model of a kind with three blocks (ViT's: two), as a list and as a stack."""
    name, sizes = FAMILIES[kind]
    sizes = {**sizes, "depth": 3, **DROPS, **changes}
    return create_model(name, **sizes), create_model(name, **sizes, scan_blocks=True)


def loss_and_grads(model: Any, key: jax.Array | None) -> tuple[jax.Array, Arrays]:
    """Of some loss, with dropout drawn from `key`; gradients by the names of a list of blocks."""
    model.eval() if key is None else model.train()
    graphdef, params, buffers = split_model(model)
    x = normal(2, 32, 48, 3, dtype=np.float64)

    def loss(params: Arrays) -> jax.Array:
        merged = merge_model(graphdef, {**params, **buffers})
        rngs = None if key is None else nnx.Rngs(dropout=key)
        logits = merged(x, rngs=rngs)
        total = sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(logits))
        # What is drawn after the blocks shows whether they drew as many keys.
        return total if rngs is None else total + jax.random.normal(rngs.dropout(), (), x.dtype)

    value, grads = jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)(params)
    return value, unstack_arrays(grads)


def assert_same(ours: tuple[jax.Array, Arrays], reference: tuple[jax.Array, Arrays], tolerance: float) -> None:
    np.testing.assert_allclose(ours[0], reference[0], rtol=tolerance)
    assert ours[1].keys() == reference[1].keys()
    total = float(np.sqrt(sum(np.sum(np.square(g)) for g in reference[1].values())))
    for name, grad in reference[1].items():
        assert np.linalg.norm(ours[1][name] - grad) <= tolerance * total, name


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", ["convolution", "se", "ghost", "resnext", "distilled"])
def test_a_stack_computes_what_the_list_computes_and_drops_what_it_drops(kind: str):
    """In float64: a mask that differs, or another key for one block, would change the loss in its first digits."""
    unrolled, scanned = both(kind, param_dtype=jnp.float64)
    key = jax.random.key(3, impl="rbg")
    assert_same(loss_and_grads(scanned, key), loss_and_grads(unrolled, key), 1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("drops", [{"drop_path_rate": 0.0}, {"drop_rate": 0.0, "attn_drop_rate": 0.0}])
def test_without_some_of_the_dropouts(drops: dict[str, float]):
    """With one rate for all blocks nothing is left to the program; stochastic depth alone draws none in block 0."""
    unrolled, scanned = both("convolution", **drops, param_dtype=jnp.float64)
    key = jax.random.key(4, impl="rbg")
    assert_same(loss_and_grads(scanned, key), loss_and_grads(unrolled, key), 1e-13)


@pytest.mark.usefixtures("x64")
def test_in_evaluation_nothing_is_dropped():
    unrolled, scanned = both("convolution", param_dtype=jnp.float64)
    assert_same(loss_and_grads(scanned, None), loss_and_grads(unrolled, None), 1e-13)


def test_bfloat16_computes_low_and_keeps_float32():
    unrolled, scanned = both("convolution", dtype=jnp.bfloat16)
    images = normal(2, 32, 48, 3)
    ours, theirs = scanned(images), unrolled(images)
    assert ours.dtype == theirs.dtype == jnp.bfloat16
    assert all(array.dtype == jnp.float32 for array in model_arrays(scanned).values())
    np.testing.assert_allclose(np.float32(ours), np.float32(theirs), atol=0.02)


def test_the_program_holds_one_block_however_many_there_are():
    def size(depth: int) -> int:
        model = abstract(lambda: both("convolution", depth=depth)[1])
        graphdef, params, buffers = split_model(model)
        images = jax.ShapeDtypeStruct((2, 32, 48, 3), jnp.float32)
        text = str(jax.make_jaxpr(lambda arrays, x: merge_model(graphdef, arrays)(x))({**params, **buffers}, images))
        return text.count("dot_general")

    assert size(2) == size(9) < 12


def test_parameters_are_those_of_the_list_with_an_axis_in_front():
    unrolled, scanned = both("se")
    _, params, _ = split_model(scanned)
    assert params["blocks.attn.se_layer.fc.0.kernel"].shape == (3, 16, 1)
    assert params["blocks.norm1.scale"].shape == (3, 16)
    assert params["norm.scale"].shape == (16,)
    chex.assert_trees_all_equal(model_arrays(scanned), model_arrays(unrolled))  # and they begin alike
    assert list(model_arrays(scanned)) == list(model_arrays(unrolled))


def test_models_are_stacked_and_unstacked_again():
    unrolled, scanned = both("distilled")
    before = nnx.split(unrolled)[0]
    assert nnx.split(unstack_blocks(stack_blocks(unrolled)))[0] == before
    again = unstack_blocks(scanned)
    assert [block.drop_path.rate for block in again.blocks] == [block.drop_path.rate for block in unrolled.blocks]
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
    source, (unrolled, scanned) = both("se")[0], both("se")
    wanted = {name: array + 1 for name, array in model_arrays(source).items()}
    for model in (unrolled, scanned):
        load_arrays(model, stack_arrays(wanted) if model is unrolled else wanted)
        chex.assert_trees_all_equal(model_arrays(model), wanted)
    del wanted["blocks.1.attn.proj.kernel"]
    with pytest.raises(ValueError, match=r"missing: blocks\.1\.attn\.proj\.kernel"):
        load_arrays(scanned, wanted)


def test_blocks_that_differ_are_refused():
    with pytest.raises(ValueError, match="the blocks of T2TViTDense are not alike"):
        create_model("t2t_vit_dense", **FAMILIES["dense"][1], scan_blocks=True)


def test_training_without_rngs_is_refused():
    model = both("convolution", drop_rate=0.0, attn_drop_rate=0.0)[1]
    model.train()
    with pytest.raises(ValueError, match="rngs"):
        model(normal(1, 32, 48, 3))
