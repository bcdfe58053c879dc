"""The T2T transformer layer: its scale, and `v` as skip connection."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from t2t_torch.models.token_transformer import Attention, TokenTransformer
from tests.support.golden import rel_f


def test_attention_scales_by_the_width_that_comes_in():
    torch.manual_seed(0)
    layer = Attention(147, 8).double()
    assert layer.scale == 147**-0.5
    x = torch.randn(2, 5, 147, dtype=torch.float64)
    q, k, v = np.split(x.numpy() @ layer.qkv.weight.detach().numpy().T, 3, axis=2)
    scores = np.exp(147**-0.5 * q @ k.transpose(0, 2, 1))
    mixed = scores / scores.sum(axis=2, keepdims=True) @ v
    expected = v + mixed @ layer.proj.weight.detach().numpy().T + layer.proj.bias.detach().numpy()
    assert rel_f(layer(x).detach(), expected) <= 1e-13


def test_qkv_has_no_bias():
    assert Attention(10, 4).qkv.bias is None


def test_the_skip_connection_is_v():
    layer = Attention(10, 4)
    for parameter in layer.proj.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(2, 5, 10)
    assert torch.equal(layer(x), layer.qkv(x)[..., 8:])


def test_layer_has_no_residual_around_its_attention():
    torch.manual_seed(0)
    layer = TokenTransformer(10, 4)
    x = torch.randn(2, 5, 10)
    y = layer.attn(layer.norm1(x))
    assert torch.equal(layer(x), y + layer.mlp(layer.norm2(y)))
    assert layer.mlp.fc1.out_features == 4
