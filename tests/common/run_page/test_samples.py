from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from t2t_common.run_page.samples import SIDE, encode, shares


def pixels(png: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_those_before_normalisation(channels: int):
    original = np.random.RandomState(0).randint(0, 256, (2, 5, 7, channels))
    mean, std = [0.1, 0.5, 0.4][:channels], [0.2, 0.3, 0.25][:channels]
    images = ((original / 255 - mean) / std).astype(np.float32)
    found = encode(images, np.array([3, 1]), mean=mean, std=std)
    for one, expected in zip(found, original, strict=True):
        np.testing.assert_array_equal(pixels(one["png"]).reshape(expected.shape), expected)
    assert [one["labels"] for one in found] == [[(3, 1.0)], [(1, 1.0)]]


def test_what_erasing_puts_beyond_the_range_is_cut_off():
    (one,) = encode(np.array([[[[-9.0], [9.0]]]]), np.array([0]), mean=[0.5], std=[0.25])
    assert pixels(one["png"]).tolist() == [[0, 255]]


def test_large_images_are_scaled_down_and_small_ones_stay():
    large, small = np.zeros((1, 2 * SIDE, 4 * SIDE, 3)), np.zeros((1, 8, 8, 3))
    sizes = [pixels(encode(x, np.zeros(1), mean=[0.5] * 3, std=[1.0] * 3)[0]["png"]).shape for x in (large, small)]
    assert sizes == [(SIDE // 2, SIDE, 3), (8, 8, 3)]


def test_shares_are_those_before_smoothing():
    classes, smoothing = 10, 0.1
    one_hot = np.eye(classes)
    mixed = 0.7 * one_hot[4] + 0.3 * one_hot[2]
    found = shares(mixed * (1 - smoothing) + smoothing / classes, smoothing)
    assert [index for index, _ in found] == [4, 2]
    assert [share for _, share in found] == pytest.approx([0.7, 0.3])
    assert shares(one_hot[9].astype(np.float32), 0.0) == [(9, 1.0)]
