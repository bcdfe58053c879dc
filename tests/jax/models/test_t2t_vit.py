"""T2T-ViT as a whole: sizes, token types, heads, dropout, initialisation, precision, compilation."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t2t_jax import create_model
from t2t_jax.models.layers import Buffer, Conv, Dropout, LayerNorm, Linear
from t2t_jax.models.mix_token import MixToken
from t2t_jax.models.t2t_vit import T2TModule
from t2t_jax.models.transformer_block import get_sinusoid_encoding
from tests.support.golden import rel_f
from tests.support.jax_models import abstract, apply, modules, normal, primitive_dtypes, variables

NAME = "t2t_vit_micro"


def model(**arguments: Any) -> nnx.Module:
    return create_model(NAME, **{"img_size": 32, "num_classes": 10} | arguments)


# ---- sizes ----


@pytest.mark.parametrize("tokens_type", ["performer", "transformer", "convolution"])
@pytest.mark.parametrize("size", [(32, 32), (48, 32), (33, 47), (30, 100), (3, 3)])
def test_any_input_size(size: tuple[int, int], tokens_type: str):
    net = abstract(lambda: model(img_size=size, tokens_type=tokens_type))
    rows, columns = net.grid_size
    # Kernel 7, stride 4, padding 2; then twice kernel 3, stride 2, padding 1, which halves and rounds up.
    assert (rows, columns) == tuple(-(-((side - 3) // 4 + 1) // 4) for side in size)
    graphdef, state = nnx.split(net)
    image = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    tokens = jax.eval_shape(lambda state, x: nnx.merge(graphdef, state).forward_features(x), state, image)
    assert tokens.shape == (2, 1 + rows * columns, 64)


@pytest.mark.parametrize("tokens_type", ["performer", "transformer", "convolution"])
def test_a_wide_image_is_read_rows_first(tokens_type: str):
    """A pixel changed near the right upper corner moves the last token of the first row most."""
    net = T2TModule((32, 64), tokens_type, 3, 16, 8, rngs=nnx.Rngs(0))
    net.eval()
    x = normal(1, 32, 64, 3)
    moved = np.abs(np.asarray(apply(net, x.at[0, 2, 62].add(10.0)) - apply(net, x))).sum(axis=(0, 2))
    assert moved.shape == (2 * 4,)
    assert moved.argmax() == 3


def test_too_small_an_image_is_refused():
    with pytest.raises(ValueError, match="img_size 2x2 is too small"):
        abstract(lambda: model(img_size=2))


@pytest.mark.parametrize("shape", [(32, 32, 3), (2, 32, 48, 3), (2, 3, 32, 32), (2, 32, 32, 1)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"expected images \(B, 32, 32, 3\)"):
        jax.eval_shape(lambda: model()(jnp.zeros(shape)))


# ---- tokens and heads ----


def test_unknown_tokens_type():
    with pytest.raises(ValueError, match="'conv' is not one of performer, transformer, convolution"):
        model(tokens_type="conv")


def test_logits_come_from_the_class_token():
    net, x = model(), normal(2, 32, 32, 3)
    tokens = net.forward_features(x)
    np.testing.assert_array_equal(net(x), net.head(tokens[:, 0]))
    net.reset_classifier(0, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(net(x), tokens[:, 0])


def test_no_classes_means_features():
    net = model(num_classes=0)
    assert apply(net, normal(2, 32, 32, 3)).shape == (2, 64)
    assert not [name for name in variables(net) if name.startswith("head")]


def test_reset_classifier():
    net = model()
    net.reset_classifier(300, rngs=nnx.Rngs(3))
    assert net.num_classes == 300
    assert net(normal(2, 32, 32, 3)).shape == (2, 300)
    assert float(net.head.kernel[...].std()) == pytest.approx(0.02, rel=0.05)
    assert not net.head.bias[...].any()


def test_token_labeling_gives_both_heads_in_training_and_their_sum_after():
    net, x = model(aux_head=True, performer_drop_rate=0.0), normal(2, 32, 32, 3)
    tokens = net.forward_features(x)
    net.train()
    logits, token_logits = net(x, nnx.Rngs(dropout=0))
    np.testing.assert_array_equal(logits, net.head(tokens[:, 0]))
    np.testing.assert_array_equal(token_logits, net.aux_head(tokens[:, 1:]))
    net.eval()
    np.testing.assert_array_equal(net(x), logits + 0.5 * token_logits.max(axis=1))
    assert net.get_classifier() == (net.head, net.aux_head)
    net.reset_classifier(4, rngs=nnx.Rngs(0))
    assert net(x).shape == (2, 4)
    net.reset_classifier(0, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(net(x), tokens[:, 0])


def test_exchanged_tokens_go_through_the_blocks_of_their_partners_and_come_back():
    """All of them: the class token then sees the partner's image. One of them: both logits tell of it."""
    net, x, partners = model(aux_head=True, performer_drop_rate=0.0), normal(4, 32, 32, 3), np.array([1, 0, 3, 2])
    net.train()
    boxes = (0, 0, 0, 0), (0, 2, 0, 2), (0, 1, 1, 2)
    plain, whole, part = (apply(net, x, nnx.Rngs(dropout=0), MixToken(*box, group=2)) for box in boxes)
    np.testing.assert_allclose(whole[0], plain[0][partners], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(whole[1], plain[1], rtol=1e-4, atol=1e-6)
    assert rel_f(part[1][:, 1], plain[1][:, 1]) < 0.5 * rel_f(part[1][:, 1], plain[1][partners, 1])
    assert not np.isclose(part[0], plain[0]).any()


def test_positions_are_the_sinusoid_table_and_are_added():
    net, x = model(), normal(1, 32, 32, 3)
    np.testing.assert_array_equal(net.pos_embed[...], get_sinusoid_encoding(5, 64))
    before = apply(net, x)
    net.pos_embed[...] = net.pos_embed[...][:, ::-1]
    assert rel_f(apply(net, x), before) > 1e-3


def test_qk_scale_replaces_the_default():
    x = normal(2, 32, 32, 3)
    np.testing.assert_array_equal(apply(model(qk_scale=32**-0.5), x), apply(model(), x))  # 64 channels in 2 heads
    assert not np.array_equal(apply(model(qk_scale=64**-0.5), x), apply(model(), x))


def test_images_of_a_batch_do_not_meet():
    net, x = model(), normal(3, 32, 32, 3)
    alone = np.concatenate([apply(net, image[None]) for image in x])
    assert rel_f(apply(net, x), alone) <= 1e-6


# ---- training ----


def test_training_needs_rngs_and_the_same_key_gives_the_same():
    net, x = model(), normal(2, 32, 32, 3)
    np.testing.assert_array_equal(apply(net, x), apply(net, x))
    net.train()
    with pytest.raises(ValueError, match="rngs"):
        apply(net, x)
    # The performers' own dropout, whatever drop_rate says.
    np.testing.assert_array_equal(apply(net, x, key=0), apply(net, x, key=0))
    assert not np.array_equal(apply(net, x, key=0), apply(net, x, key=1))
    still = model(performer_drop_rate=0.0)
    still.train()
    np.testing.assert_array_equal(apply(still, x, key=0), apply(still, x, key=1))


@pytest.mark.parametrize("rate", ["drop_rate", "attn_drop_rate", "drop_path_rate"])
def test_every_dropout_has_an_effect_in_training_only(rate: str):
    x = normal(4, 32, 32, 3)
    net = model(performer_drop_rate=0.0, **{rate: 0.5})
    np.testing.assert_array_equal(apply(net, x, key=0), apply(model(), x))
    net.train()
    assert not np.array_equal(apply(net, x, key=0), apply(net, x, key=1))


def test_dropouts_of_one_pass_draw_differently():
    layer, rngs, x = Dropout(0.5), nnx.Rngs(dropout=0), jnp.ones(100)
    assert not np.array_equal(layer(x, rngs=rngs), layer(x, rngs=rngs))


def test_what_is_frozen_and_what_is_not_decayed():
    net = model()
    frozen = {name for name, variable in variables(net).items() if not isinstance(variable, nnx.Param)}
    assert frozen == {"pos_embed", "tokens_to_token.attention1.w", "tokens_to_token.attention2.w"}
    assert all(isinstance(variables(net)[name], Buffer) for name in frozen)
    assert net.no_weight_decay() == {"cls_token"}


# ---- initialisation ----


@pytest.mark.parametrize("tokens_type", ["performer", "transformer", "convolution"])
def test_initialisation(tokens_type: str):
    net = model(tokens_type=tokens_type)
    assert float(net.cls_token[...].std()) == pytest.approx(0.02, rel=0.5)
    for name, layer in modules(net, nnx.Module).items():
        if isinstance(layer, Linear):
            # The spread of n samples is known to 1 / sqrt(2 n); five times that is never seen by chance.
            spread = pytest.approx(0.02, rel=5 / np.sqrt(2 * layer.kernel.size))
            assert float(layer.kernel[...].std()) == spread, name
            assert layer.bias is None or not layer.bias[...].any(), name
        elif isinstance(layer, LayerNorm):
            assert (layer.scale[...] == 1).all(), name
            assert not layer.bias[...].any(), name
            assert layer.epsilon == 1e-5, name
        elif isinstance(layer, Conv):
            bound = np.prod(layer.kernel.shape[:3]) ** -0.5
            assert 0.9 * bound < float(jnp.abs(layer.kernel[...]).max()) <= bound, name


def test_the_seed_decides():
    a, b, c = (variables(model(rngs=nnx.Rngs(seed))) for seed in (0, 0, 1))
    for name in a:
        np.testing.assert_array_equal(a[name][...], b[name][...])
    drawn = [name for name in a if name.endswith(("kernel", ".w", "cls_token"))]
    assert not [name for name in drawn if np.array_equal(a[name][...], c[name][...])]
    first, second = (a[f"blocks.{i}.attn.qkv.kernel"][...] for i in range(2))
    assert not np.array_equal(first, second)


# ---- precision ----


def test_bfloat16_computes_low_and_keeps_its_parameters_high():
    low, full, x = model(dtype=jnp.bfloat16), model(), normal(2, 32, 32, 3)
    assert {str(variable.dtype) for variable in variables(low).values()} == {"float32"}
    y = apply(low, x)
    assert y.dtype == jnp.bfloat16
    assert 1e-4 < rel_f(y.astype(jnp.float32), apply(full, x)) < 0.05
    dtypes = primitive_dtypes(low, x)
    assert dtypes["exp"] == {"float32"}
    assert "bfloat16" in dtypes["dot_general"]
    graphdef, params, rest = nnx.split(low, nnx.Param, ...)
    grads = jax.eval_shape(jax.grad(lambda p: nnx.merge(graphdef, p, rest)(x).sum().astype(jnp.float32)), params)
    assert {str(grad.dtype) for grad in jax.tree.leaves(grads)} == {"float32"}


@pytest.mark.parametrize("tokens_type", ["performer", "transformer", "convolution"])
def test_float64_throughout(x64: None, tokens_type: str):
    graphdef, state = nnx.split(abstract(lambda: model(param_dtype=jnp.float64, tokens_type=tokens_type)))
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float64)
    dtypes = primitive_dtypes(lambda state, x: nnx.merge(graphdef, state)(x), state, image)
    assert dtypes["dot_general"] == {"float64"}
    assert not {"float32", "bfloat16"} & set().union(*dtypes.values())


# ---- compilation ----


def test_compiles_once_and_equals_the_eager_model():
    net, x = model(), normal(2, 32, 32, 3)
    graphdef, state = nnx.split(net)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def forward(state: nnx.State, x: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, state)(x)

    y = forward(state, x)
    assert rel_f(y, net(x)) < 1e-5
    changed = jax.tree.map(lambda leaf: 1.1 * leaf, state)
    assert rel_f(forward(changed, 2 * x), y) > 1e-3
