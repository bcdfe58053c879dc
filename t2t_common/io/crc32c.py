"""CRC-32C (Castagnoli), the checksum of TFRecord files, in NumPy.

The bytes are split into rows whose checksums are computed side by side, two bytes at a time, and then joined: the
checksum is linear, so that of a row followed by n zero bytes is a linear map of that of the row.
"""

from __future__ import annotations

import functools

import numpy as np

POLYNOMIAL = 0x82F63B78
"""Polynomial of CRC-32C, the lowest coefficient first."""

MASK_DELTA = 0xA282EAD8
"""Constant of the mask (tensorflow/core/lib/hash/crc32c.h)."""

ROW = 64
"""Number of bytes in a row."""


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of `data`."""
    if len(data) < 4:
        return int(crc32c_of_rows(np.frombuffer(data, np.uint8)[None])[0])
    # The start value is that of a start at 0 with the first four bytes inverted, and zeros before them change nothing.
    padded = np.zeros(-(-len(data) // ROW) * ROW, np.uint8)
    own = padded[len(padded) - len(data) :]
    own[:] = np.frombuffer(data, np.uint8)
    own[:4] ^= 0xFF
    states, doubled = _states(padded.reshape(-1, ROW), 0), 0
    while len(states) > 1:
        if len(states) % 2:
            states = np.concatenate([np.zeros(1, np.uint32), states])
        states = _apply(_zeros(doubled), states[::2]) ^ states[1::2]
        doubled += 1
    return int(states[0]) ^ 0xFFFFFFFF


def crc32c_of_rows(rows: np.ndarray) -> np.ndarray:
    """Return the CRC-32C of every row of `rows`, uint8 (N, L), as uint32 (N,)."""
    return _states(rows, 0xFFFFFFFF) ^ np.uint32(0xFFFFFFFF)


def masked(crc: np.ndarray | int) -> np.ndarray | int:
    """Return the masked checksum, as TFRecord stores it: rotated right by 15 bits, plus a constant, in 32 bits."""
    return ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF


def _states(rows: np.ndarray, start: int) -> np.ndarray:
    """Return the state of the checksum of every row after its last byte, from the state `start` before its first."""
    state = np.full(len(rows), start, np.uint32)
    pairs = rows.shape[1] // 2
    table = _pairs()
    for column in np.ascontiguousarray(rows[:, : 2 * pairs]).view("<u2").T.astype(np.uint32, order="C"):
        state = state >> 16 ^ table[(state ^ column) & 0xFFFF]
    if rows.shape[1] % 2:
        state = state >> 8 ^ _bytes()[(state ^ rows[:, -1]) & 0xFF]
    return state


@functools.cache
def _bytes() -> np.ndarray:
    """Return the state after one byte, by the lowest byte of state and data combined: uint32 (256,)."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(POLYNOMIAL), table >> 1)
    return table


@functools.cache
def _pairs() -> np.ndarray:
    """Return the same for two bytes: uint32 (65536,)."""
    state = np.arange(1 << 16, dtype=np.uint32)
    for _ in range(2):
        state = state >> 8 ^ _bytes()[state & 0xFF]
    return state


@functools.cache
def _zeros(doubled: int) -> np.ndarray:
    """Return the state after `ROW * 2**doubled` zero bytes, by each byte of the state before: uint32 (4, 256)."""
    if doubled:
        half = _zeros(doubled - 1)
        return _apply(half, half)
    states = np.arange(256, dtype=np.uint32)[None] << np.array([[0], [8], [16], [24]], np.uint32)
    for _ in range(ROW):
        states = states >> 8 ^ _bytes()[states & 0xFF]
    return states


def _apply(tables: np.ndarray, states: np.ndarray) -> np.ndarray:
    low = tables[0][states & 0xFF] ^ tables[1][states >> 8 & 0xFF]
    return low ^ tables[2][states >> 16 & 0xFF] ^ tables[3][states >> 24]
