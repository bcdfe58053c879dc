"""Layouts found from shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from parity.align import channels_last, closest_axes, fitting_axes, input_axes
from tests.parity.pairs import images

LINEAR, CONV = torch.nn.Linear(2, 2), torch.nn.Conv2d(2, 2, 1)
NHWC = (0, 2, 3, 1)


def test_channels_last():
    assert channels_last(4) == NHWC
    assert images(2, 3, 4, 5).transpose(NHWC).shape == (2, 4, 5, 3)


@pytest.mark.parametrize(("rank", "axes"), [(2, None), (3, None), (4, NHWC), (5, (0, 2, 3, 4, 1)), (6, None)])
def test_images_and_volumes_go_in_with_channels_last(rank: int, axes: tuple[int, ...] | None):
    assert input_axes(rank) == axes


@pytest.mark.parametrize(
    ("ours", "theirs", "module", "expected"),
    [
        ((2, 3), (2, 3), LINEAR, [None]),
        ((2, 5, 3), (2, 5, 3), LINEAR, [None]),
        ((2, 3, 5), (2, 5, 3), torch.nn.Unfold(2), [(0, 2, 1)]),
        ((2, 3, 8, 6), (2, 8, 6, 3), CONV, [NHWC]),
        ((2, 3, 8, 6), (2, 8, 6, 3), LINEAR, [NHWC]),
        ((2, 8, 6, 3), (2, 8, 6, 3), LINEAR, [None]),
        ((2, 4, 4, 4), (2, 4, 4, 4), CONV, [NHWC]),  # the module says it
        ((2, 4, 4, 4), (2, 4, 4, 4), LINEAR, [None, NHWC]),  # nobody knows
        ((2, 4, 4), (2, 4, 4), LINEAR, [None]),  # tokens
        ((2, 4, 4), (2, 4, 4), torch.nn.Conv1d(4, 4, 1), [(0, 2, 1)]),
    ],
)
def test_which_layouts_fit(ours, theirs, module, expected):
    assert fitting_axes(ours, theirs, module) == expected


@pytest.mark.parametrize(("ours", "theirs"), [((2, 3), (3, 2)), ((2, 3, 4), (2, 3, 5)), ((2, 3), (2, 3, 1))])
def test_no_layout_fits(ours: tuple[int, ...], theirs: tuple[int, ...]):
    with pytest.raises(ValueError, match="shapes differ"):
        fitting_axes(ours, theirs, LINEAR)


def test_where_shapes_leave_it_open_the_numbers_decide():
    array = images(2, 4, 4, 4)
    noisy = array + 1e-3 * images(2, 4, 4, 4, seed=2)
    assert closest_axes([None, NHWC], array, noisy) is None
    assert closest_axes([None, NHWC], array, noisy.transpose(NHWC)) == NHWC


def test_a_wrong_layout_is_not_made_right():
    array = images(2, 4, 4, 4)
    heights_and_widths_swapped = array.transpose(0, 3, 2, 1)
    for axes in ([None, NHWC], [NHWC]):
        found = closest_axes(axes, array, heights_and_widths_swapped)
        aligned = array if found is None else array.transpose(found)
        assert np.abs(aligned - heights_and_widths_swapped).max() > 0.1
