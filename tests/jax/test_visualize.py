"""What is looked into is what the model computes, and looking leaves no trace."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import t2t_jax
from t2t_common.visualize.inside import covered_size
from t2t_jax.visualize import attention_weights, make_feature_extractor
from tests.support.families import FAMILIES
from tests.support.jax_models import abstract, normal


def made(kind: str, **more: Any) -> Any:
    """With random weights, drawn by numpy: operation by operation JAX draws slowly."""
    name, arguments = FAMILIES[kind]
    graphdef, state = nnx.split(abstract(lambda: t2t_jax.create_model(name, **arguments, **more)))
    draw = np.random.RandomState(0)
    fill = lambda x: jnp.asarray(0.1 * draw.standard_normal(x.shape), x.dtype)  # noqa: E731
    return nnx.merge(graphdef, jax.tree.map(fill, state))


def image(seed: int = 1) -> np.ndarray:
    return np.asarray(normal(32, 48, 3, seed=seed))


class Seen(nnx.Module):
    """In place of a dropout of weights at work, keeps what it is given."""

    deterministic = False

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        self.sow(nnx.Intermediate, "weights", x)
        return x


@pytest.mark.parametrize("kind", ["performer", "se", "ghost", "resnext"])
def test_the_weights_are_those_that_the_layer_uses(kind: str):
    attn = made(kind).blocks[0].attn
    attn.attn_drop = Seen()
    x = normal(2, 7, attn.proj.in_features)
    _, used = nnx.capture(attn, nnx.Intermediate)(x)
    weights = attention_weights(attn, x)
    assert weights.shape == (2, attn.num_heads, 7, 7)
    np.testing.assert_allclose(weights, used["attn_drop"]["weights"].get_value()[0], rtol=1e-5)


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_is_found_has_its_shape_and_is_the_models(kind: str):
    model = made(kind)
    found = make_feature_extractor(model)(image())
    tokens = model.num_prefix_tokens + model.grid_size[0] * model.grid_size[1]
    blocks = {f"blocks.{i}": block for i, block in enumerate(model.blocks) if hasattr(block, "attn")}
    assert list(found.attention) == list(blocks)
    for name, weights in found.attention.items():
        assert weights.shape == (blocks[name].attn.num_heads, tokens, tokens)
        np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
    assert found.positions.shape == (tokens, model.embed_dim)
    assert found.is_finite
    images = jnp.asarray(image())[None]
    np.testing.assert_allclose(found.logits, model(images)[0], rtol=1e-4, atol=1e-6)
    if kind in ("vit", "in21k", "distilled"):
        assert found.stages == {}
    else:
        assert [tokens.shape[:2] for tokens in found.stages.values()] == list(model.tokens_to_token.grids)
        last = model.tokens_to_token(images)[0]
        np.testing.assert_allclose(found.stages["project"].reshape(last.shape), last, rtol=1e-4, atol=1e-6)


def test_dense_models_have_attention_in_some_of_their_blocks_only():
    assert list(make_feature_extractor(made("dense"))(image()).attention) == [
        "blocks.0",
        "blocks.2",
        "blocks.4",
        "blocks.6",
    ]


def test_tokens_stand_for_whole_patches():
    small = {"depth": 1, "embed_dim": 16, "num_heads": 2}
    for name, size in (("vit_base_patch16_224", (32, 48)), ("t2t_vit_14", (40, 50))):
        assert covered_size(abstract(lambda name=name: t2t_jax.create_model(name, img_size=(40, 50), **small))) == size


def test_every_image_is_looked_at_anew_and_the_model_stays_as_it_was():
    model = made("performer", scan_blocks=True)
    before = nnx.split(model)
    look = make_feature_extractor(model)
    first, second = look(image()), look(image(2))
    assert not np.array_equal(first.attention["blocks.0"], second.attention["blocks.0"])
    np.testing.assert_array_equal(look(image()).attention["blocks.0"], first.attention["blocks.0"])
    after = nnx.split(model)
    assert before[0] == after[0]
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), before[1], after[1]))
    with pytest.raises(ValueError, match="expected images"):
        look(image()[:16])
