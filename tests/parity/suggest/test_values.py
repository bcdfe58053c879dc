"""Shared values: the same in every layout that a tensor could have."""

from __future__ import annotations

import numpy as np
import pytest

from parity.suggest.pieces import Piece
from parity.suggest.values import classes, drawn, shared_values


@pytest.mark.parametrize(
    ("shapes", "jax_shapes"),
    [
        ([(4, 4)], [(4, 4)]),
        ([(4, 6), (6, 4)], [(4, 6), (6, 4)]),
        ([(4, 4, 3, 3)], [(3, 3, 4, 4)]),
        ([(8, 6)], [(6, 2, 4)]),
        ([(4, 4)], [(4, 2, 2)]),
        ([(8,), (8,)], [(2, 4), (8,)]),
        ([(1, 1, 5), (5,)], [(5,), (1, 5)]),
        ([()], [()]),
    ],
)
def test_values_do_not_depend_on_layout(shapes, jax_shapes):
    sides = (
        tuple(Piece(f"t{i}", s) for i, s in enumerate(shapes)),
        tuple(Piece(f"j{i}", s) for i, s in enumerate(jax_shapes)),
    )
    for group in classes(sides, frozenset()):
        ours, theirs = shared_values(group, np.random.RandomState(0), 1.0)
        for one in group.ours:
            for other in group.theirs:
                for rule in group.rules(one.shape, other.shape):
                    np.testing.assert_array_equal(rule.to_jax(ours[one], other.shape), theirs[other])
            assert len(np.unique(ours[one])) >= min(3, one.size)  # not constant


def test_kernels_of_transposed_convolutions_may_be_flipped():
    sides = (Piece("up.weight", (4, 6, 2, 3)),), (Piece("k", (2, 3, 6, 4)),)
    (group,) = classes(sides, frozenset({"up.weight"}))
    ours, _ = shared_values(group, np.random.RandomState(0), 1.0)
    value = ours[group.ours[0]]
    np.testing.assert_array_equal(value, value[:, :, ::-1, ::-1])
    assert not np.array_equal(value, value[:, :, ::-1])


def test_vectors_could_be_variances():
    assert drawn((1000,), np.random.RandomState(0), 0.4).min() > 0.1
    assert drawn((100, 100), np.random.RandomState(0)).min() < 0
