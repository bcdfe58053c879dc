"""Layouts: those of right ports are found, exactly and in both directions, and no wrong order has one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity.trace.values.layout import MOST_AXES, SAME, closest, layouts


def values(*shape: int) -> np.ndarray:
    return np.random.RandomState(0).standard_normal(shape)


@given(st.data())
def test_permuted_and_merged_axes_are_found(data: st.DataObject):
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    axes = data.draw(st.permutations(range(len(sizes))))
    x = values(*sizes)
    moved = x.transpose(axes)
    if len(sizes) > 1:  # two neighbours become one axis
        i = data.draw(st.integers(0, len(sizes) - 2))
        shape = list(moved.shape)
        moved = moved.reshape(*shape[:i], shape[i] * shape[i + 1], *shape[i + 2 :])
    for value, wanted in ((x, moved), (moved, x)):
        error, layout = closest(value, wanted)
        assert error == 0
        assert np.array_equal(layout.to_torch(value), wanted)
        assert np.array_equal(layout.to_jax(wanted, value.shape), value)


def test_every_layout_goes_both_ways():
    x = values(2, 3, 4)
    found = list(layouts((2, 3, 4), (6, 4)))
    assert len(found) > 1
    for layout in found:
        assert np.array_equal(layout.to_jax(layout.to_torch(x), x.shape), x)


def test_the_order_as_it_is_comes_first():
    x = values(3, 3, 3)
    assert np.array_equal(next(layouts(x.shape, x.shape)).to_torch(x), x)
    assert np.array_equal(next(layouts((2, 3, 4), (2, 12))).to_torch(values(2, 3, 4)), values(2, 3, 4).reshape(2, 12))


def test_all_orders_of_equal_axes_are_tried():
    x = values(3, 3, 3)
    for axes in itertools.permutations(range(3)):
        assert closest(x, x.transpose(axes))[0] == 0


def test_images_and_heads():
    x = values(2, 5, 6, 3)  # N H W C
    assert closest(x, x.transpose(0, 3, 1, 2))[0] == 0
    assert closest(x, x.transpose(0, 3, 1, 2).reshape(2, 3, 30))[0] == 0
    heads = values(2, 5, 4, 8)  # B N H D
    assert closest(heads, heads.transpose(0, 2, 1, 3).reshape(8, 5, 8))[0] == 0
    assert closest(heads, heads.reshape(2, 5, 32))[0] == 0


def test_heads_that_are_merged_wrongly_have_no_layout():
    heads = values(2, 3, 5, 4)  # B H N D
    right = heads.transpose(0, 2, 1, 3).reshape(2, 5, 12)
    wrong = heads.reshape(2, 5, 12)
    error, _ = closest(wrong, right)
    assert error > 0.5
    assert np.array_equal(np.sort(wrong, axis=None), np.sort(right, axis=None))


def test_a_flipped_axis_has_no_layout():
    x = values(4, 5)
    assert closest(x[::-1], x)[0] > 0.5


def test_axes_of_one_element_do_not_matter():
    x = values(4, 5)
    assert closest(x[:, None, :, None], x.T)[0] == 0
    assert closest(np.array(2.0), np.array([[2.0]]))[0] == 0


def test_sizes_that_do_not_fit_have_none():
    assert closest(values(4, 5), values(4, 6)) is None
    assert closest(values(4, 6), values(3, 8)) is None
    assert closest(values(1, 5), np.broadcast_to(values(1, 5), (4, 5))) is None


def test_too_many_axes_have_none():
    shape = (2,) * (MOST_AXES + 1)
    assert list(layouts(shape, shape)) == []


def test_the_closest_is_found_among_wrong_ones():
    """Values that are not equal: the error is that of the best layout, also with more elements than are probed."""
    x = values(16, 16, 16)
    wanted = x.transpose(2, 0, 1) * (1 + 1e-4)
    error, layout = closest(x, wanted)
    assert error == pytest.approx(1e-4, rel=1e-2)
    assert np.array_equal(layout.to_torch(x), x.transpose(2, 0, 1))


def test_rounding_is_the_same():
    x = values(6, 6, 6)
    error, layout = closest(x * (1 + 2.0**-52), x.transpose(1, 2, 0))
    assert 0 < error <= SAME
    assert np.allclose(layout.to_torch(x), x.transpose(1, 2, 0), rtol=0, atol=1e-12)


def test_empty_arrays_have_none():
    assert closest(np.zeros((0, 3)), np.zeros((0, 3))) is None
