"""The backbone's pieces against their formulas, written with loops."""

from __future__ import annotations

import math
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from t2t_torch.models.transformer_block import Attention, Block, Mlp, dot_product_attention, get_sinusoid_encoding
from tests.support.golden import rel_f


@pytest.mark.parametrize(("positions", "width"), [(17, 64), (5, 7)])
def test_sinusoid_table(positions: int, width: int):
    table = get_sinusoid_encoding(positions, width)
    assert table.dtype == torch.float32
    expected = np.empty((1, positions, width))
    for p in range(positions):
        for i in range(width):
            angle = p / 10000 ** (2 * (i // 2) / width)
            expected[0, p, i] = math.sin(angle) if i % 2 == 0 else math.cos(angle)
    # Rounded once: float32's unit roundoff, not more.
    assert np.abs(table.numpy() - expected).max() <= 2**-24


def test_sinusoid_table_is_computed_in_float64():
    # In float32 the angle of position 576 would be off by 3e-5, and so would the table.
    assert get_sinusoid_encoding(577, 512)[0, 576, 0].item() == np.float32(math.sin(576))


def attention_by_loops(x: np.ndarray, layer: Attention) -> np.ndarray:
    w = {name: value.detach().numpy() for name, value in layer.state_dict().items()}
    B, _, C = x.shape
    D = C // layer.num_heads
    out = np.empty_like(x)
    for b in range(B):
        qkv = x[b] @ w["qkv.weight"].T + w.get("qkv.bias", 0.0)
        for h in range(layer.num_heads):
            q, k, v = (qkv[:, i * C + h * D : i * C + (h + 1) * D] for i in range(3))
            scores = np.exp(q @ k.T * layer.scale)
            out[b, :, h * D : (h + 1) * D] = scores / scores.sum(axis=1, keepdims=True) @ v
    return out @ w["proj.weight"].T + w["proj.bias"]


@pytest.mark.parametrize("options", [{}, {"qkv_bias": True}, {"qk_scale": 0.7}])
def test_attention(options: dict[str, float | bool]):
    torch.manual_seed(0)
    layer = Attention(12, num_heads=3, **options).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    assert layer.scale == options.get("qk_scale", 4**-0.5)
    assert rel_f(layer(x).detach(), attention_by_loops(x.numpy(), layer)) <= 1e-13


def test_attention_needs_heads_that_divide_its_width():
    with pytest.raises(ValueError, match="embed_dim 10 is not divisible by num_heads 3"):
        Attention(10, num_heads=3)


def test_attention_with_a_dropout_at_work_is_the_same_function():
    """Fused or written out, by whether weights are dropped: the same numbers and gradients where none is."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True) for _ in range(3))
    with mock.patch.object(F, "scaled_dot_product_attention", wraps=F.scaled_dot_product_attention) as kernel:
        fused = dot_product_attention(q, k, v, 0.5, nn.Dropout(0.3).eval())
        assert kernel.call_count == 1
        dot_product_attention(q, k, v, 0.5, nn.Dropout(0.3))
        assert kernel.call_count == 1  # it would not show the dropout the weights
    written_out = dot_product_attention(q, k, v, 0.5, nn.Dropout(0.0))
    assert rel_f(fused.detach(), written_out.detach()) <= 1e-14
    for way in zip(*(torch.autograd.grad(y.square().sum(), (q, k, v)) for y in (fused, written_out)), strict=True):
        assert rel_f(*way) <= 1e-13


def test_mlp_uses_the_exact_gelu():
    torch.manual_seed(0)
    layer = Mlp(6, 10, 4).double()
    x = torch.randn(3, 6, dtype=torch.float64)
    hidden = layer.fc1(x).detach().numpy()
    hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
    expected = hidden @ layer.fc2.weight.detach().numpy().T + layer.fc2.bias.detach().numpy()
    assert rel_f(layer(x).detach(), expected) <= 1e-13


def test_block_is_pre_norm_with_two_residuals():
    torch.manual_seed(0)
    block = Block(8, 2, mlp_ratio=3.0).double()
    x = torch.randn(2, 4, 8, dtype=torch.float64)
    y = x + block.attn(block.norm1(x))
    y = y + block.mlp(block.norm2(y))
    assert torch.equal(block(x), y)
    assert block.mlp.fc1.out_features == 24
    for layer in (block.attn.proj, block.mlp.fc2):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    assert torch.equal(block(x), x)


def test_block_norm_eps():
    assert Block(8, 2).norm1.eps == 1e-5
    assert Block(8, 2, norm_eps=1e-6).norm2.eps == 1e-6


def test_drop_path_wraps_both_branches():
    block = Block(8, 2, drop_path=1.0)
    x = torch.randn(2, 4, 8)
    assert torch.equal(block(x), x)
    assert not torch.equal(block.eval()(x), x)
