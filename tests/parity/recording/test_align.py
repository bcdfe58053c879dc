"""Layouts found from shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from parity.recording.align import channels_last, closest_axes, fitting_axes, input_axes, possible_input_axes
from tests.support.parity.pairs import images

LINEAR, CONV = torch.nn.Linear(2, 2), torch.nn.Conv2d(2, 2, 1)
NHWC = (0, 2, 3, 1)


def test_channels_last():
    assert channels_last(4) == NHWC
    assert images(2, 3, 4, 5).transpose(NHWC).shape == (2, 4, 5, 3)


@pytest.mark.parametrize(("rank", "axes"), [(2, None), (3, None), (4, NHWC), (5, (0, 2, 3, 4, 1)), (6, None)])
def test_images_and_volumes_go_in_with_channels_last(rank: int, axes: tuple[int, ...] | None):
    assert input_axes(rank) == axes


@pytest.mark.parametrize(
    ("ours", "theirs", "module", "labels", "expected"),
    [
        ((2, 3), (2, 3), LINEAR, None, [None]),
        ((2, 5, 3), (2, 5, 3), LINEAR, None, [None]),
        ((2, 3, 5), (2, 5, 3), torch.nn.Unfold(2), None, [(0, 2, 1)]),
        ((2, 3, 8, 6), (2, 8, 6, 3), CONV, None, [NHWC]),
        ((2, 3, 8, 6), (2, 8, 6, 3), LINEAR, "BCSS", [NHWC]),
        ((2, 8, 6, 3), (2, 8, 6, 3), LINEAR, "BSSC", [None]),
        ((2, 8, 6, 3), (2, 8, 6, 3), LINEAR, None, [None]),
        ((2, 4, 4, 4), (2, 4, 4, 4), CONV, None, [NHWC, None]),  # of equal sides: the numbers decide
        ((2, 4, 4, 4), (2, 4, 4, 4), LINEAR, "BCSS", [NHWC, None]),
        ((2, 4, 4, 4), (2, 4, 4, 4), LINEAR, None, [None]),  # nothing says that it is transposed
        ((2, 4, 4), (2, 4, 4), LINEAR, None, [None]),  # tokens
        ((2, 4, 4), (2, 4, 4), torch.nn.Conv1d(4, 4, 1), None, [(0, 2, 1), None]),
        ((5, 2, 4), (2, 5, 4), torch.nn.LSTM(4, 4), None, [(1, 0, 2)]),
        ((2, 2, 3, 8, 6), (2, 8, 6, 2, 3), LINEAR, "BCCSS", [(0, 3, 4, 1, 2)]),  # channels in groups
    ],
)
def test_which_layouts_fit(ours, theirs, module, labels, expected):
    assert fitting_axes(ours, theirs, module, labels) == expected


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ((2, 3), (3, 2)),
        ((2, 3, 4), (2, 3, 5)),
        ((2, 3), (2, 3, 1)),
        ((2, 7, 5), (2, 5, 7)),
        ((2, 3, 8, 6), (2, 8, 6, 3)),
    ],
)
def test_no_layout_fits(ours: tuple[int, ...], theirs: tuple[int, ...]):
    with pytest.raises(ValueError, match="shapes differ"):
        fitting_axes(ours, theirs, LINEAR)


def test_what_to_write_for_another_layout():
    with pytest.raises(ValueError, match=r"Rules\(layouts=\{NAME: \(0, 2, 3, 1\)\}\)"):
        fitting_axes((2, 3, 8, 6), (2, 8, 6, 3), LINEAR)


@pytest.mark.parametrize(("rank", "count"), [(2, 1), (3, 2), (4, 2), (5, 3)])
def test_inputs_may_have_other_layouts_than_the_usual_one(rank: int, count: int):
    found = possible_input_axes(rank)
    assert found[0] == input_axes(rank)
    assert len(set(found)) == len(found) == count


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
