"""Tensors that need a word, and are no failure."""

from __future__ import annotations

import jax.numpy as jnp
import torch
from flax import nnx

from parity.carry.convert import torch_to_jax
from parity.judgement.rows import weight_notes, weight_rows


def test_widths_of_integers_are_told_and_their_values_compared():
    source, model = torch.nn.Module(), nnx.Module()
    source.register_buffer("places", torch.tensor([1, -7, 2**30]))
    source.none = torch.nn.Parameter(torch.zeros(0, 3))
    model.places, model.none = nnx.Variable(jnp.zeros(3, jnp.int32)), nnx.Param(jnp.zeros((0, 3)))
    ledger = torch_to_jax(source, model)
    assert all(row.passed for row in weight_rows(ledger, source, model))
    assert weight_notes(ledger, source, model) == [
        "none is empty: there is nothing to compare",
        "places is int64 in PyTorch and int32 in JAX, compared by its numbers",
    ]
    model.places[...] = model.places[...].at[0].set(2)
    assert [row.name for row in weight_rows(ledger, source, model) if not row.passed] == ["places"]
    model.places.set_value(jnp.asarray([1.0, -7.0, 2.0**30]))
    (row,) = (row for row in weight_rows(ledger, source, model) if not row.passed)
    assert row.note == "int64 in PyTorch, float32 in JAX"
    model.none = nnx.Variable(jnp.zeros((0, 3)))
    assert any(row.name == "none" and "frozen" in row.note for row in weight_rows(ledger, source, model))
