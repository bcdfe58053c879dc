"""ViT and DeiT: patches, the two tokens and heads of the distilled ones, `pre_logits`."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t2t_jax.models.layers import LayerNorm, Linear
from t2t_jax.models.vit import VisionTransformer
from tests.support.golden import rel_f
from tests.support.jax_models import abstract, apply, modules, normal, variables


def model(**arguments: Any) -> VisionTransformer:
    defaults = {"img_size": 32, "patch_size": 8, "num_classes": 10, "embed_dim": 16, "depth": 2, "num_heads": 2}
    net = VisionTransformer(**defaults | arguments, rngs=nnx.Rngs(0))
    net.eval()
    return net


@pytest.mark.parametrize("size", [(32, 32), (16, 40), (37, 30)])
def test_any_input_size(size: tuple[int, int]):
    net = abstract(lambda: model(img_size=size))
    rows, columns = size[0] // 8, size[1] // 8
    assert net.grid_size == (rows, columns)
    assert net.pos_embed.shape == (1, 1 + rows * columns, 16)


def test_patches_are_embedded_rows_first_and_the_rest_is_dropped():
    net = model(img_size=(20, 30))
    x, kernel = np.asarray(normal(1, 20, 30, 3)), np.asarray(net.patch_embed.proj.kernel[...])
    out = net.patch_embed(jnp.asarray(x))
    for row in range(2):
        for column in range(3):
            patch = x[0, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            expected = np.tensordot(patch, kernel, 3) + np.asarray(net.patch_embed.proj.bias[...])
            assert rel_f(out[0, 3 * row + column], expected) < 1e-6


def test_image_smaller_than_a_patch_is_refused():
    with pytest.raises(ValueError, match="img_size 7x32 is smaller than one patch of 8"):
        model(img_size=(7, 32))


@pytest.mark.parametrize("shape", [(32, 32, 3), (2, 32, 32, 1), (2, 40, 32, 3)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="expected images"):
        model()(normal(*shape))


def test_logits_come_from_the_class_token():
    net, x = model(), normal(2, 32, 32, 3)
    tokens = net.forward_features(x)
    np.testing.assert_array_equal(net(x), net.head(tokens[:, 0]))
    net.reset_classifier(0, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(net(x), tokens[:, 0])


def test_distilled_gives_both_heads_in_training_and_their_mean_after():
    net, x = model(distilled=True), normal(2, 32, 32, 3)
    tokens = net.forward_features(x)
    assert tokens.shape == (2, 2 + 16, 16)
    net.train()
    logits, logits_dist = net(x, nnx.Rngs(dropout=0))
    np.testing.assert_array_equal(logits, net.head(tokens[:, 0]))
    np.testing.assert_array_equal(logits_dist, net.head_dist(tokens[:, 1]))
    assert not np.array_equal(logits, logits_dist)
    net.eval()
    np.testing.assert_array_equal(net(x), (logits + logits_dist) / 2)
    net.reset_classifier(4, rngs=nnx.Rngs(0))
    assert net(x).shape == (2, 4)
    assert net.get_classifier() == (net.head, net.head_dist)
    net.reset_classifier(0, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(net(x), (tokens[:, 0] + tokens[:, 1]) / 2)


def test_distilled_training_compiles():
    net = model(distilled=True, drop_path_rate=0.5)
    net.train()
    logits, logits_dist = apply(net, normal(2, 32, 32, 3), key=0)
    assert logits.shape == logits_dist.shape == (2, 10)


def test_pre_logits_is_a_tanh_layer_before_the_head():
    net, x = model(representation_size=24), normal(2, 32, 32, 3)
    hidden = jnp.tanh(net.pre_logits.fc(net.forward_features(x)[:, 0]))
    np.testing.assert_array_equal(net(x), net.head(hidden))
    net.reset_classifier(3, rngs=nnx.Rngs(0))
    assert net(x).shape == (2, 3)
    assert not hasattr(model(representation_size=24, distilled=True).pre_logits, "fc")


def test_norm_eps():
    assert {norm.epsilon for norm in modules(abstract(model), LayerNorm).values()} == {1e-6}
    low = abstract(lambda: model(norm_eps=1e-5))
    assert {norm.epsilon for norm in modules(low, LayerNorm).values()} == {1e-5}


def test_everything_is_trained_and_tokens_are_not_decayed():
    net = abstract(lambda: model(distilled=True))
    assert all(isinstance(variable, nnx.Param) for variable in variables(net).values())
    assert net.no_weight_decay() == {"pos_embed", "cls_token", "dist_token"}


def test_initialisation():
    net = model(embed_dim=192, num_heads=3, distilled=True)
    for token in (net.cls_token, net.dist_token, net.pos_embed):
        assert float(token[...].std()) == pytest.approx(0.02, rel=0.25)
    for layer in modules(net, Linear).values():
        assert float(layer.kernel[...].std()) == pytest.approx(0.02, rel=0.07)
        assert not layer.bias[...].any()
