"""The performer layer: its formula, its random features, its precision, its dropout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from t2t_torch.models.token_performer import TokenPerformer
from tests.support.golden import rel_f


def features(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """exp(w x - |x|^2 / 2) / sqrt(M), row by row."""
    return np.stack([np.exp(w @ row - row @ row / 2) / np.sqrt(len(w)) for row in x])


def test_single_attention_by_loops():
    torch.manual_seed(0)
    layer = TokenPerformer(10, 6).double().eval()
    x = torch.randn(2, 5, 10, dtype=torch.float64)
    w = {name: value.detach().numpy() for name, value in layer.state_dict().items()}
    for b in range(2):
        kqv = x[b].numpy() @ w["kqv.weight"].T + w["kqv.bias"]
        k, q, v = kqv[:, :6], kqv[:, 6:12], kqv[:, 12:]  # in this order
        kp, qp = features(k, w["w"]), features(q, w["w"])
        y = np.empty_like(v)
        for n in range(5):
            weights = kp @ qp[n]
            y[n] = weights @ v / (weights.sum() + 1e-8)
        expected = v + y @ w["proj.weight"].T + w["proj.bias"]
        assert rel_f(layer.single_attn(x)[b].detach(), expected) <= 1e-13


def test_random_features_estimate_the_softmax_kernel():
    torch.manual_seed(0)
    layer = TokenPerformer(4, 4, kernel_ratio=25_000).double()
    layer.w.data.normal_()
    q, k = (0.5 * torch.randn(3, 1, 4, dtype=torch.float64) for _ in range(2))
    estimate = (layer.prm_exp(q) * layer.prm_exp(k)).sum(dim=-1)
    assert rel_f(estimate.detach(), torch.exp((q * k).sum(dim=-1))) < 0.02


def test_w_has_orthogonal_rows_of_norm_sqrt_m():
    torch.manual_seed(0)
    layer = TokenPerformer(147, 64)
    assert layer.w.shape == (32, 64)
    assert rel_f(layer.w.detach() @ layer.w.detach().T, 32 * torch.eye(32)) < 1e-6


def test_w_is_frozen_but_saved():
    layer = TokenPerformer(10, 6)
    assert not layer.w.requires_grad
    assert "w" in layer.state_dict()


def test_kqv_has_a_bias():
    assert TokenPerformer(10, 6).kqv.bias is not None


def test_the_skip_connection_is_v():
    layer = TokenPerformer(10, 6).eval()
    for parameter in layer.proj.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(2, 5, 10)
    assert torch.equal(layer.single_attn(x), layer.kqv(x)[..., 12:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_exponentials_stay_in_float32(dtype: torch.dtype):
    torch.manual_seed(0)
    layer = TokenPerformer(10, 6).eval()
    layer.kqv.weight.data *= 8  # |k|^2 / 2 of some 20: exp(-20) is zero in float16, and so would the denominator be
    x = torch.randn(2, 50, 10)
    kqv = layer.kqv(layer.norm1(x)).detach()
    assert (kqv[..., :6] ** 2).sum(dim=-1).max() / 2 > 20
    expected = layer(x).detach()
    low = layer.to(dtype)(x.to(dtype))
    assert low.dtype == dtype
    assert rel_f(low.detach().float(), expected) < 0.1


def test_float64_stays_float64():
    layer = TokenPerformer(10, 6).double().eval()
    x = torch.randn(1, 5, 10, dtype=torch.float64)
    assert layer(x).dtype == torch.float64
    # A step through float32 would lose nine digits.
    assert rel_f(layer.float()(x.float()).detach(), layer.double()(x).detach()) > 1e-9


def test_dropout_is_a_tenth_unless_told_otherwise():
    layer = TokenPerformer(10, 6)
    assert (layer.dp.p, layer.mlp[3].p) == (0.1, 0.1)
    x = torch.randn(2, 50, 10)
    assert not torch.equal(layer(x), layer(x))
    layer = TokenPerformer(10, 6, drop=0.0)
    assert torch.equal(layer(x), layer(x))
