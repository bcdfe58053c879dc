"""What is looked into is what the model computes, and looking leaves no trace."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import t2t_torch
from t2t_common.visualize.inside import covered_size
from t2t_torch.visualize import attention_weights, make_feature_extractor
from tests.support.families import FAMILIES


def made(kind: str) -> Any:
    name, arguments = FAMILIES[kind]
    torch.manual_seed(0)
    return t2t_torch.create_model(name, **arguments).eval().double()


def image(seed: int = 1) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal((32, 48, 3))


@pytest.mark.parametrize("kind", ["performer", "se", "ghost", "resnext"])
def test_the_weights_are_those_that_the_layer_uses(kind: str):
    attn = made(kind).blocks[0].attn
    attn.attn_drop = torch.nn.Dropout(0.0).train()  # at work, so that it is given the weights
    x = torch.from_numpy(np.random.RandomState(0).standard_normal((2, 7, attn.proj.in_features)))
    used = []
    handle = attn.attn_drop.register_forward_hook(lambda module, args, output: used.append(output))
    with torch.no_grad():
        attn(x)
        weights = attention_weights(attn, x)
    handle.remove()
    assert weights.shape == (2, attn.num_heads, 7, 7)
    torch.testing.assert_close(weights, used[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_is_found_has_its_shape_and_is_the_models(kind: str):
    model = made(kind)
    found = make_feature_extractor(model)(image())
    tokens = model.num_prefix_tokens + model.grid_size[0] * model.grid_size[1]
    blocks = {f"blocks.{i}": block for i, block in enumerate(model.blocks) if hasattr(block, "attn")}
    assert list(found.attention) == list(blocks)
    for name, weights in found.attention.items():
        assert weights.shape == (blocks[name].attn.num_heads, tokens, tokens)
        np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-12)
    assert found.positions.shape == (tokens, model.embed_dim)
    assert found.is_finite
    with torch.no_grad():
        images = torch.from_numpy(image()).permute(2, 0, 1)[None]
        np.testing.assert_array_equal(found.logits, model(images)[0].numpy())
        if kind in ("vit", "in21k", "distilled"):
            assert found.stages == {}
        else:
            assert [tokens.shape[:2] for tokens in found.stages.values()] == list(model.tokens_to_token.grids)
            last = model.tokens_to_token(images)[0].numpy()
            np.testing.assert_array_equal(found.stages["project"].reshape(last.shape), last)


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
        assert covered_size(t2t_torch.create_model(name, img_size=(40, 50), **small)) == size


def test_every_image_is_looked_at_anew_and_no_hook_stays():
    look = make_feature_extractor(model := made("performer"))
    first, second = look(image()), look(image(2))
    assert not np.array_equal(first.attention["blocks.0"], second.attention["blocks.0"])
    np.testing.assert_array_equal(look(image()).attention["blocks.0"], first.attention["blocks.0"])
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match="expected images"):
        look(image()[:16])
    assert not any(module._forward_hooks for module in model.modules())
