"""Layouts that turn one shape into another, and the likeliest of several partners."""

from __future__ import annotations

import numpy as np
import pytest

from parity.by_value.candidates import Resolver, fitting, layouts
from parity.carry.rules import LeafRule


@pytest.mark.parametrize(
    ("shape", "jax_shape", "first"),
    [
        ((6, 4), (4, 6), LeafRule("", "", (1, 0))),
        ((4, 4), (4, 4), LeafRule("", "", (1, 0))),
        ((6, 4, 3, 3), (3, 3, 4, 6), LeafRule("", "", (2, 3, 1, 0))),
        ((8,), (2, 4), LeafRule("", "", reshape=True)),
        ((8, 6), (6, 2, 4), LeafRule("", "", (1, 0), reshape=True)),
        ((8, 6), (2, 6, 4), LeafRule("", "", (0, 2, 1), reshape=True, split=(2, 4, 6))),
        ((1, 5, 8), (5, 8), LeafRule("", "", reshape=True)),
    ],
)
def test_the_usual_layout_comes_first(shape, jax_shape, first):
    assert layouts(shape, jax_shape)[0] == first
    assert all(rule.fits(shape, jax_shape) for rule in layouts(shape, jax_shape))


def test_shapes_that_no_layout_joins():
    assert layouts((6, 4), (5, 5)) == layouts((6, 4), (3, 8)) == ()


@pytest.mark.parametrize("shape", [(6, 4), (4, 4), (2, 2, 3), (5, 3, 2, 2), (4, 6, 1)])
def test_layouts_are_found_by_values(shape):
    """Every layout of every shape turns numbers into others from which it is found again, and only it."""
    array = np.arange(float(np.prod(shape))).reshape(shape)
    for jax_shape in (shape, shape[::-1], (*shape[2:], shape[1], shape[0]), (2, -1)):
        target = tuple(array.reshape(jax_shape).shape)
        for rule in layouts(shape, target, flips=True):
            found = fitting(array, rule.to_jax(array, target))
            assert len(found) == 1
            np.testing.assert_array_equal(found[0].to_jax(array, target), rule.to_jax(array, target))
            np.testing.assert_array_equal(rule.to_torch(rule.to_jax(array, target), shape), array)


def test_values_in_an_order_that_is_no_layout():
    array = np.arange(12.0).reshape(3, 4)
    assert fitting(array, np.roll(array, 1).T) == []


def test_neighbours_decide():
    names = ["a.norm.weight", "b.norm.weight"], ["y.s.p1", "x.s.p2"]
    assert Resolver().resolve(*names)[1] is False
    chosen, certain = Resolver([("a.norm.bias", "x.s.p3"), ("b.norm.bias", "y.s.p4")]).resolve(*names)
    assert sorted(chosen) == [(0, 1), (1, 0)]
    assert certain
    # One that both lie in tells nothing.
    assert not Resolver([("a.norm.bias", "t.p3"), ("b.norm.bias", "t.p4")]).resolve(names[0], ["t.p1", "t.p2"])[1]


def test_equal_names_decide():
    chosen, certain = Resolver().resolve(["h.0.weight", "h.1.weight"], ["h.1.kernel", "h.0.kernel"])
    assert (sorted(chosen), certain) == ([(0, 1), (1, 0)], True)
