"""Rows: what a float32 tensor is measured against."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import t2t_torch
from parity.capture import Call
from parity.compare import Gates
from parity.judge import float32_rows, summed
from parity.pairing import Pair


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


def pair(path: str, module: torch.nn.Module) -> Pair:
    return Pair((path, 0), (path, 0), module, (0,), (None,), (None,))


def squeeze(numbers: int, mode: str) -> dict[str, float]:
    """The gates of Linear(384), ReLU, Linear(24), LayerNorm on tensors of `numbers`, PyTorch's error 1e-7 in each."""
    modules = {"a": nn.Linear(384, 24), "b": nn.ReLU(), "c": nn.Linear(24, 384), "d": nn.LayerNorm(384)}
    pairs = [pair(path, module) for path, module in modules.items()]
    exact = {p.jax: Call([np.ones(numbers)], [np.ones(numbers)]) for p in pairs}
    ours = {key: Call(call.inputs, [call.outputs[0] * (1 + 1e-7)]) for key, call in exact.items()}
    rows = float32_rows(pairs, exact, ours, exact, mode, Gates())
    return {row.name: row.gate for row in rows if row.mode == mode}


def expected(terms: int, size: int = 1000) -> float:
    return pytest.approx(Gates().float32(1e-7, size, 1e-5, terms=terms), rel=1e-6)


def test_forced_each_layer_is_granted_its_own_sum_alone():
    assert squeeze(1000, "forced") == {"a": expected(384), "b": expected(0), "c": expected(24), "d": expected(0)}


def test_running_free_a_layer_is_granted_the_sum_before_its_own():
    assert squeeze(1000, "free") == {"a": expected(384), "b": expected(384), "c": expected(384), "d": expected(384)}


def test_few_numbers_are_granted_chance():
    assert squeeze(8, "forced")["d"] == expected(0, 8)
    assert squeeze(8, "forced")["d"] > squeeze(1000, "forced")["d"]
