"""What SE, Dense and Ghost change, each against its formula."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from t2t_jax import create_model
from t2t_jax.models import t2t_vit_dense, t2t_vit_ghost, t2t_vit_se, transformer_block
from tests.support.golden import rel_f
from tests.support.jax_models import abstract, modules, normal, variables

# ---- squeeze-and-excitation ----


def test_se_squeezes_over_all_tokens(x64: None):
    layer = t2t_vit_se.SELayer(32, reduction=4, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    for variable in variables(layer).values():
        variable.set_value(normal(*variable.shape, dtype=np.float64))
    down, up = (np.asarray(layer.fc[i].kernel[...]) for i in (0, 2))
    assert (down.shape, up.shape) == ((32, 8), (8, 32))
    x = np.asarray(normal(2, 5, 32, dtype=np.float64))
    mean = x.mean(axis=1)  # the class token's row counts like any other
    gate = 1 / (1 + np.exp(-np.maximum(mean @ down, 0) @ up))
    assert rel_f(layer(jnp.asarray(x)), x * gate[:, None]) <= 1e-13


def test_se_sits_between_proj_and_its_dropout():
    layer = t2t_vit_se.Attention(32, 2, proj_drop=1.0, rngs=nnx.Rngs(0))
    x = normal(2, 5, 32)
    assert not layer(x, nnx.Rngs(dropout=0)).any()  # the dropout comes last
    layer.eval()
    np.testing.assert_array_equal(layer(x), layer.se_layer(layer.proj(layer.attend(x, None))))


# ---- dense ----


def test_dense_block_appends_its_new_channels():
    block = t2t_vit_dense.Block(6, 8, 2, mlp_ratio=2.0, rngs=nnx.Rngs(0))
    block.eval()
    x = normal(2, 5, 8)
    y = x + block.attn(block.norm1(x))
    y = y + block.mlp(block.norm2(y))
    out = block(x)
    assert out.shape == (2, 5, 14)
    np.testing.assert_array_equal(out[..., :8], x)
    np.testing.assert_array_equal(out[..., 8:], block.dense_linear(y))


def test_transition_halves_the_width():
    layer = t2t_vit_dense.Transition(8, 4, rngs=nnx.Rngs(0))
    x = normal(2, 5, 8)
    np.testing.assert_array_equal(layer(x), jax.nn.gelu(layer.linear(x), approximate=False))


def test_dense_widths_and_drop_path_rates():
    model = abstract(lambda: create_model("t2t_vit_dense", img_size=32, drop_path_rate=0.11))
    widths, rates = [], []
    for layer in model.blocks:
        if isinstance(layer, t2t_vit_dense.Block):
            widths.append(layer.dense_linear.in_features)
            rates.append(layer.drop_path.rate)
        else:
            widths.append(-layer.linear.in_features)
    # 128, +64 for every block; a transition (negative here) halves.
    assert widths[:5] == [128, 192, 256, -320, 160]
    assert len(widths) == 3 + 6 + 6 + 4 + 3
    assert model.norm.num_features == model.head.in_features == model.num_features == 584
    # Upstream's rule: by stage, over a depth of 12.
    assert rates == pytest.approx([0.0] * 3 + [0.01] * 6 + [0.02] * 6 + [0.03] * 4)


# ---- ghost ----


def test_cheap_operation_is_a_depthwise_convolution():
    layer = t2t_vit_ghost.CheapOperation(6, rngs=nnx.Rngs(0))
    reference = torch.nn.Conv1d(6, 6, kernel_size=1, groups=6, bias=False)
    reference.weight.data = torch.from_numpy(np.array(layer.kernel[...])).permute(2, 1, 0)
    x = np.array(normal(2, 5, 6))
    expected = reference(torch.from_numpy(x).transpose(1, 2)).transpose(1, 2)
    assert rel_f(layer(x), expected.detach()) <= 1e-7
    assert rel_f(layer(x), nnx.Conv.__call__(layer, jnp.asarray(x))) <= 1e-7
    assert 0.5 < float(jnp.abs(layer.kernel[...]).max()) <= 1  # U(-1, 1): one input per channel


def test_ghost_mlp():
    layer = t2t_vit_ghost.MlpGhost(4, 12, rngs=nnx.Rngs(0))
    layer.eval()
    x = normal(2, 5, 4)
    a = layer.act(layer.fc1(x))
    b, c = (layer.act(a * op.kernel[...].reshape(1, 1, -1)) for op in (layer.cheap_operation2, layer.cheap_operation3))
    np.testing.assert_array_equal(layer(x), layer.fc2(jnp.concatenate((a, b, c), axis=2)))


def test_ghost_attention_makes_half_of_each_projection_cheaply():
    """Ghost attention is attention whose projections are [W, W diag(cheap)]."""
    layer = t2t_vit_ghost.AttentionGhost(8, 2, rngs=nnx.Rngs(0))
    plain = transformer_block.Attention(8, 2, rngs=nnx.Rngs(0))
    layer.eval()
    plain.eval()
    for seed, variable in enumerate(variables(layer).values()):
        variable.set_value(normal(*variable.shape, seed=seed))
    columns = []
    for name in ("q", "k", "v"):
        kernel = getattr(layer, name).kernel[...]
        columns += [kernel, kernel * getattr(layer, f"cheap_operation_{name}").kernel[...].reshape(1, -1)]
    plain.qkv.kernel[...] = jnp.concatenate(columns, axis=1)
    plain.proj = layer.proj
    x = normal(2, 5, 8)
    assert rel_f(layer(x), plain(x)) <= 1e-5


def test_ghost_needs_mlp_ratio_three():
    with pytest.raises(ValueError, match="mlp_ratio 3, got 2"):
        abstract(lambda: create_model("t2t_vit_16_ghost", img_size=32, mlp_ratio=2.0))


def test_ghost_needs_heads_that_divide_its_width():
    with pytest.raises(ValueError, match=r"embed_dim 384 .* num_heads 7"):
        abstract(lambda: create_model("t2t_vit_16_ghost", img_size=32, num_heads=7))


# ---- all ----


@pytest.mark.parametrize("tokens_type", ["performer", "transformer", "convolution"])
@pytest.mark.parametrize("name", ["t2t_vit_14_se", "t2t_vit_dense", "t2t_vit_16_ghost"])
def test_variants_take_any_size_and_tokens(name: str, tokens_type: str):
    def logits() -> jax.Array:
        model = create_model(name, img_size=(33, 64), num_classes=5, in_chans=1, tokens_type=tokens_type)
        assert not modules(model, t2t_vit_dense.Transition) or name == "t2t_vit_dense"
        return model(jnp.zeros((2, 33, 64, 1)))

    assert jax.eval_shape(logits).shape == (2, 5)
