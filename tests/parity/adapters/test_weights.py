"""The arrays of a pytree by name, taken out and put back."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from parity.adapters.weights import Weights, dotted


def test_arrays_are_taken_out_and_put_back():
    tree = {"a": [np.ones(2), 3, None], "b": {"key": jax.random.key(0), "w": jax.ShapeDtypeStruct((2,), np.float32)}}
    weights = Weights.of(tree, dotted)
    assert set(weights.arrays) == {"a.0", "b.w"}
    back = weights.put(weights.arrays)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    assert back["a"][1] == 3
    bare = weights.without_arrays()
    assert not any(isinstance(leaf, np.ndarray) for leaf in bare.leaves)
    np.testing.assert_array_equal(bare.put({"a.0": np.zeros(2), "b.w": np.zeros(2)})["a"][0], np.zeros(2))


def test_an_array_in_parts():
    weights = dataclasses.replace(Weights.of({"b": np.arange(6.0)}, dotted), parts={"b": 3})
    assert {name: part.tolist() for name, part in weights.arrays.items()} == {
        "b.0": [0.0, 1.0],
        "b.1": [2.0, 3.0],
        "b.2": [4.0, 5.0],
    }
    np.testing.assert_array_equal(weights.put(weights.arrays)["b"], np.arange(6.0))


def test_names_are_unique():
    with pytest.raises(ValueError, match=r"two tensors of JAX are called a\.b"):
        Weights.of({"a.b": np.ones(1), "a": {"b": np.ones(1)}}, dotted)
