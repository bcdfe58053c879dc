"""Causes in words for PyTorch's code."""

from __future__ import annotations

import dataclasses

import pytest

from parity.causes.other_reference import of_pytorch
from parity.report.findings import Cause


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "gelu -> tanh gelu (model.py:12)",
            "PyTorch computes gelu where the reference computes tanh gelu (model.py:12)",
        ),
        (
            "layer_norm: eps 1e-05 -> 1e-06",
            "layer_norm: PyTorch has eps 1e-05 where the reference has 1e-06",
        ),
        (
            "conv2d: padding 1 on both sides -> 0 before, 1 after (a b.py:3)",
            "conv2d: PyTorch has padding 1 on both sides where the reference has 0 before, 1 after (a b.py:3)",
        ),
        (
            "qkv: its 3 equal parts read in the order (1, 0, 2)",
            "PyTorch differs from the reference, in which: qkv: its 3 equal parts read in the order (1, 0, 2)",
        ),
        ("JAX alone casts to float32 at port.py:3", "the reference alone casts to float32 at port.py:3"),
        ("JAX's derivative by x is 2 times PyTorch's", "the reference's derivative by x is 2 times PyTorch's"),
    ],
)
def test_the_cause_is_said_of_pytorch(text: str, told: str) -> None:
    cause = Cause("mlp", "switch", text, 1.0, 0.0)
    assert of_pytorch(cause) == dataclasses.replace(cause, description=told)
