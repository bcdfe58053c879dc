"""What SE, Dense and Ghost change, each against its formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from t2t_torch import create_model
from t2t_torch.models import t2t_vit_dense, t2t_vit_ghost, t2t_vit_se
from tests.support.golden import rel_f


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


# ---- squeeze-and-excitation ----


def test_se_squeezes_over_all_tokens():
    torch.manual_seed(0)
    layer = t2t_vit_se.SELayer(32, reduction=4).double()
    x = tokens(2, 5, 32)
    down, up = (value.numpy() for value in layer.state_dict().values())
    assert (down.shape, up.shape) == ((8, 32), (32, 8))
    mean = x.numpy().mean(axis=1)  # the class token's row counts like any other
    gate = 1 / (1 + np.exp(-np.maximum(mean @ down.T, 0) @ up.T))
    assert rel_f(layer(x).detach(), x.numpy() * gate[:, None, :]) <= 1e-13


def test_se_sits_between_proj_and_its_dropout():
    torch.manual_seed(0)
    layer = t2t_vit_se.Attention(32, 2).double()
    seen = {}
    for name in ("proj", "se_layer", "proj_drop"):
        getattr(layer, name).register_forward_hook(lambda m, args, out, name=name: seen.update({name: (args[0], out)}))
    out = layer(tokens(2, 5, 32))
    assert list(seen) == ["proj", "se_layer", "proj_drop"]
    assert torch.equal(seen["se_layer"][0], seen["proj"][1])
    assert torch.equal(out, seen["se_layer"][1])


# ---- dense ----


def test_dense_block_appends_its_new_channels():
    torch.manual_seed(0)
    block = t2t_vit_dense.Block(6, 8, 2, mlp_ratio=2.0).double()
    x = tokens(2, 5, 8)
    y = x + block.attn(block.norm1(x))
    y = y + block.mlp(block.norm2(y))
    out = block(x)
    assert out.shape == (2, 5, 14)
    assert torch.equal(out[..., :8], x)
    assert torch.equal(out[..., 8:], block.dense_linear(y))


def test_transition_halves_the_width():
    layer = t2t_vit_dense.Transition(8, 4).double()
    x = tokens(2, 5, 8)
    assert torch.equal(layer(x), nn.functional.gelu(layer.linear(x)))


def test_dense_widths_and_drop_path_rates():
    with torch.device("meta"):
        model = create_model("t2t_vit_dense", img_size=32, drop_path_rate=0.11)
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
    assert model.norm.normalized_shape == (584,)
    assert model.head.in_features == model.num_features == 584
    # Upstream's rule: by stage, over a depth of 12.
    assert rates == pytest.approx([0.0] * 3 + [0.01] * 6 + [0.02] * 6 + [0.03] * 4)


# ---- ghost ----


def test_cheap_operation_is_a_depthwise_convolution():
    torch.manual_seed(0)
    layer = t2t_vit_ghost.CheapOperation(6).double()
    reference = nn.Conv1d(6, 6, kernel_size=1, groups=6, bias=False).double()
    reference.load_state_dict(layer.state_dict())
    x = tokens(2, 5, 6)
    assert rel_f(layer(x).detach(), reference(x.transpose(1, 2)).transpose(1, 2).detach()) <= 1e-15


def test_ghost_mlp():
    torch.manual_seed(0)
    layer = t2t_vit_ghost.MlpGhost(4, 12).double()
    x = tokens(2, 5, 4)
    a = nn.functional.gelu(layer.fc1(x))
    b, c = (
        nn.functional.gelu(a * operation.weight.flatten())
        for operation in (layer.cheap_operation2, layer.cheap_operation3)
    )
    assert layer.fc1.out_features == 4
    assert torch.equal(layer(x), layer.fc2(torch.cat((a, b, c), dim=2)))


def test_ghost_attention_makes_half_of_each_projection_cheaply():
    """Ghost attention is attention whose projections are [W, diag(cheap) W]."""
    torch.manual_seed(0)
    layer = t2t_vit_ghost.AttentionGhost(8, 2).double()
    plain = t2t_vit_ghost.transformer_block.Attention(8, 2).double()
    rows = []
    for name in ("q", "k", "v"):
        weight = getattr(layer, name).weight
        factors = getattr(layer, f"cheap_operation_{name}").weight.reshape(-1, 1)
        rows += [weight, factors * weight]
    plain.load_state_dict(
        {"qkv.weight": torch.cat(rows), **{f"proj.{k}": v for k, v in layer.proj.state_dict().items()}}
    )
    x = tokens(2, 5, 8)
    assert rel_f(layer(x).detach(), plain(x).detach()) <= 1e-13


def test_ghost_needs_mlp_ratio_three():
    with pytest.raises(ValueError, match="mlp_ratio 3, got 2"):
        create_model("t2t_vit_16_ghost", img_size=32, mlp_ratio=2.0)


def test_ghost_needs_heads_that_divide_its_width():
    with pytest.raises(ValueError, match=r"embed_dim 384 .* num_heads 7"):
        create_model("t2t_vit_16_ghost", img_size=32, num_heads=7)


# ---- all ----


@pytest.mark.parametrize("name", ["t2t_vit_14_se", "t2t_vit_dense", "t2t_vit_16_ghost"])
def test_variants_take_any_size_and_tokens(name: str):
    torch.manual_seed(0)
    small = {"block_config": (1, 1)} if name == "t2t_vit_dense" else {"depth": 1}
    for tokens_type in ("performer", "transformer", "convolution"):
        model = create_model(name, img_size=(33, 64), num_classes=5, in_chans=1, tokens_type=tokens_type, **small)
        assert model.eval()(torch.randn(2, 1, 33, 64)).shape == (2, 5)
