"""Formats and whose code a file is."""

from __future__ import annotations

import contextlib

import jax.numpy as jnp
import torch
from flax import nnx

from parity import check
from parity.precision.casts import is_library, place, wider
from t2t_parity.selftest import forward


def test_formats() -> None:
    assert wider("float32", "float64") == "float64"
    assert wider("complex64", "float64") == "complex128"
    assert wider("bfloat16", "float32") == "float32"
    assert wider("float32", "float32") is None
    assert wider("float64", "float64") is None
    assert wider("int32", "float64") is None


def test_libraries_and_other_peoples_code() -> None:
    for module in (nnx, jnp, torch, contextlib):
        assert is_library(module.__file__)
    assert is_library(check.__code__.co_filename)
    assert not is_library(__file__)
    assert not is_library(forward.__file__)  # mutations stand for a port's code


def test_a_place_is_short() -> None:
    assert place("/home/me/port/norm.py", 12) == "norm.py:12"
