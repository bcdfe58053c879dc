"""CRC-32C: published values, and a second computation bit by bit."""

from __future__ import annotations

import numpy as np
import pytest

from t2t_common.io.crc32c import crc32c, crc32c_of_rows, masked


def bit_by_bit(data: bytes) -> int:
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "value"),
    [  # RFC 3720, B.4; the check value of the catalogue of CRCs
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_published_values(data: bytes, value: int):
    assert crc32c(data) == value


@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65, 127, 128, 1000, 4096, 65_537])
def test_every_length(length: int):
    data = np.random.RandomState(length).bytes(length)
    assert crc32c(data) == bit_by_bit(data)


def test_rows_and_mask():
    rows = np.random.RandomState(0).randint(0, 256, (5, 9)).astype(np.uint8)
    np.testing.assert_array_equal(crc32c_of_rows(rows), [bit_by_bit(row.tobytes()) for row in rows])
    crc = bit_by_bit(b"abc")
    assert masked(crc) == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32
