"""Rows: what a float32 tensor is measured against."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import t2t_torch
from parity.judge import summed


@pytest.mark.parametrize(
    ("module", "terms"),
    [
        (nn.Linear(384, 24), 384),
        (nn.Conv2d(6, 8, 3, groups=2), 27),
        (nn.Conv1d(64, 64, 1, groups=64), 1),
        (nn.MultiheadAttention(16, 4), 16),
        (nn.LayerNorm(7), 0),
        (nn.Embedding(9, 6), 0),
        (t2t_torch.create_model("t2t_vit_micro"), 0),  # its cls_token and pos_embed sum nothing
        (nn.ReLU(), 0),
        (nn.Sequential(nn.Linear(5, 3)), 0),
    ],
)
def test_summed_is_the_fan_in_of_a_modules_own_weights(module: torch.nn.Module, terms: int):
    assert summed(module) == terms
