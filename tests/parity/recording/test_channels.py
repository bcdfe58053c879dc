"""Which axes are channels: followed from a convolution through what keeps the axes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from parity.recording.channels import ChannelAxes, EntersChannels, channels_last_axes, labels_of, mark, reshaped

WEIGHT = torch.ones(8, 3, 3, 3)


@pytest.mark.parametrize(
    ("function", "labels"),
    [
        (lambda y: y, "BCSS"),
        (lambda y: F.relu(y) + 1, "BCSS"),
        (lambda y: F.max_pool2d(y, 2), "BCSS"),
        (lambda y: y.permute(0, 2, 3, 1), "BSSC"),
        (lambda y: y.flatten(2), "BCS"),
        (lambda y: y.flatten(2).transpose(1, 2), "BSC"),
        (lambda y: y.flatten(2).mT, "BSC"),
        (lambda y: y.flatten(2).mT.reshape(2, 4, 6, 8), "BSSC"),
        (lambda y: y.reshape(2, 2, 4, 4, 6).transpose(1, 2).reshape(2, 8, 4, 6), "BCSS"),  # channel shuffle
        (lambda y: y.flatten(1), None),
        (lambda y: y.mean((2, 3), keepdim=True), "BCSS"),
        (lambda y: y.mean((2, 3)), None),
        (lambda y: torch.cat((y, 2 * y), 1), "BCSS"),
        (lambda y: y[:, 2:, ::2], "BCSS"),
        (lambda y: y.chunk(2, 1)[1], "BCSS"),
        (lambda y: y.flatten(2).mT @ y.flatten(2), None),
        (lambda y: F.unfold(y, 2), "BCS"),
        (lambda y: torch.ones(2, 8, 4, 6), None),
    ],
)
def test_followed(function: Callable[[torch.Tensor], torch.Tensor], labels: str | None) -> None:
    with ChannelAxes():
        assert labels_of(function(F.conv2d(torch.ones(2, 3, 6, 8), WEIGHT))) == labels


def test_what_no_layer_knows_is_not_known() -> None:
    with ChannelAxes():
        assert labels_of(torch.ones(2, 3, 4, 5) + 1) is None
        assert labels_of(torch.ones(2, 3, 4).transpose(1, 2)) is None
        assert labels_of(F.layer_norm(torch.ones(2, 3, 4), (4,))) is None


@pytest.mark.parametrize(
    ("labels", "axes"), [("BCSS", (0, 2, 3, 1)), ("BSSC", None), ("BC", None), ("BSCSS", (0, 1, 3, 4, 2))]
)
def test_axes_that_bring_the_channels_last(labels: str, axes: tuple[int, ...] | None) -> None:
    assert channels_last_axes(labels) == axes


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((2, 8, 4, 4), (2, 8, 16), "BCS"),
        ((2, 8, 4, 4), (2, 128), None),
        ((2, 8, 4, 4), (2, 1, 8, 4, 4), "BCCSS"),
        ((2, 8, 1, 1), (2, 8), "BC"),
        ((2, 8, 4, 4), (16, 4, 4), None),
    ],
)
def test_reshapes(before: tuple[int, ...], after: tuple[int, ...], expected: str | None) -> None:
    assert reshaped("BCSS", before, after) == expected


@pytest.mark.parametrize(
    ("function", "enters"),
    [
        (lambda x: F.conv1d(x, torch.ones(2, 4, 1)), True),
        (lambda x: F.group_norm(x.relu() + 1, 2), True),
        (lambda x: F.conv1d(x.mT, torch.ones(2, 4, 1)), False),
        (lambda x: F.conv1d(F.conv1d(x.mT, torch.ones(4, 4, 1)), torch.ones(2, 4, 1)), False),
        (lambda x: F.linear(x, torch.ones(2, 4)), False),
    ],
)
def test_an_input_that_a_layer_takes_with_its_channels_second(
    function: Callable[[torch.Tensor], torch.Tensor], enters: bool
) -> None:
    x = torch.ones(2, 4, 4)
    mark(x, "BCS")
    with EntersChannels() as seen:
        function(x)
    assert seen.found == enters
