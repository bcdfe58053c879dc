"""Gray images with more than 8 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2t_common.data.gray16 import to_8_bits
from t2t_common.data.images import UnreadableImageError, open_image

RAMP = np.arange(256).reshape(16, 16)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bits(tmp_path: Path, name: str):
    numbers = (RAMP * 257).astype(np.uint16)
    if name == "a.pgm":  # Pillow 10 reads, but does not write it: big-endian numbers after a line of text each
        (tmp_path / name).write_bytes(b"P5\n16 16\n65535\n" + numbers.astype(">u2").tobytes())
    else:
        Image.fromarray(numbers).save(tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert np.asarray(image).max() == 65535
    found = open_image(tmp_path / name)
    assert found.mode == "L"
    np.testing.assert_array_equal(np.asarray(found), RAMP)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 255), (0, 4000), (-3, 5)])
def test_floats_of_any_range(tmp_path: Path, low: float, high: float):
    Image.fromarray((low + RAMP / 255 * (high - low)).astype(np.float32)).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "a.tif")), RAMP)


@pytest.mark.parametrize("factor", [1, 257, 2**23])
def test_integers_of_any_size(tmp_path: Path, factor: int):
    Image.fromarray((RAMP * factor).astype(np.int32)).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "a.tif")), RAMP)


def test_a_dark_image_stays_dark():
    """16 bits have a white of their own: nothing is stretched."""
    image = to_8_bits(Image.fromarray((RAMP * 25).astype(np.uint16)))
    assert np.asarray(image).max() == round(255 * 25 / 257)


def test_twelve_bits_are_told_by_the_file():
    image = Image.fromarray((RAMP * 16 + RAMP // 16).astype(np.uint16))
    image.tag_v2 = {258: (12,)}  # type: ignore[attr-defined]
    np.testing.assert_array_equal(np.asarray(to_8_bits(image)), RAMP)


def test_others_are_left_alone():
    for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK"):
        image = Image.new(mode, (2, 2))
        assert to_8_bits(image) is image


def test_an_even_image(tmp_path: Path):
    assert np.asarray(to_8_bits(Image.fromarray(np.full((2, 2), 3e6, np.float32)))).tolist() == [[0, 0], [0, 0]]
    Image.fromarray(np.full((2, 2), np.nan, np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(UnreadableImageError, match=r"nan.tif \(its pixels are not finite\)"):
        open_image(tmp_path / "nan.tif")
