"""MAT-files: what SciPy writes is read, and what is damaged is refused."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from t2t_common.io import mat_file
from t2t_common.io.mat_file import read_structs

ROWS = [(1, "n02119789", "kit fox, Vulpes macrotis"), (2, "n02100735", "English setter"), (300, "n1", "\u00e4")]


def saved(rows: Any = ROWS, compressed: bool = True, **more: Any) -> bytes:
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("children", "O")]
    synsets = np.empty((len(rows), 1), kind)
    for place, (number, wnid, words) in enumerate(rows):
        synsets[place, 0] = (float(number), wnid, words, np.arange(5.0))
    file = io.BytesIO()
    savemat(file, {"first": np.eye(3), "text": "synsets", **more, "synsets": synsets}, do_compression=compressed)
    return file.getvalue()


@pytest.mark.parametrize("compressed", [True, False])
def test_structs_that_scipy_writes(compressed: bool):
    found = read_structs(saved(compressed=compressed), "synsets")
    assert [(row["ILSVRC2012_ID"], row["WNID"], row["words"]) for row in found] == ROWS
    assert found[0]["children"] is None


def element(kind: int, data: bytes, order: str = ">") -> bytes:
    return struct.pack(f"{order}2I", kind, len(data)) + data + bytes(-len(data) % 8)


def matrix(kind: int, shape: tuple[int, int], name: str, *parts: bytes) -> bytes:
    flags = element(6, struct.pack(">2I", kind, 0))
    return element(14, flags + element(5, struct.pack(">2i", *shape)) + element(1, name.encode()) + b"".join(parts))


def by_hand(count: int = 1) -> bytes:
    """As MATLAB writes it on a machine with the other order of bytes: text in UTF-16, a small element."""
    text = matrix(4, (1, 2), "", element(17, "n\u00e4".encode("utf-16-be")))
    number = matrix(6, (1, 1), "", struct.pack(">2H", 1, 2) + b"\x07\0\0\0")
    fields = struct.pack(">2HI", 4, 5, 5) + element(1, b"WNID\0ID\0\0\0")
    return bytes(124) + b"\x01\x00MI" + matrix(2, (count, 1), "synsets", fields, text, number)


def test_the_other_order_of_bytes():
    assert read_structs(by_hand(), "synsets") == [{"WNID": "n\u00e4", "ID": 7}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no MAT-file of level 5"),
        (saved(), "no struct array other"),
        (saved(compressed=False)[:-40], "truncated"),
        (saved()[:-40], "truncated"),
        (by_hand(2**31 - 1), "has 2 values, not 2147483647 x 2"),
        (saved()[:128] + struct.pack("<2I", 15, 4) + b"abcd", "incorrect header check"),
        (saved()[:128] + struct.pack("<2I", 5 << 16 | 1, 0), "more than 4 bytes"),
    ],
)
def test_files_that_are_refused(content: bytes, message: str):
    with pytest.raises(ValueError, match=message):
        read_structs(content, "other" if "other" in message else "synsets")


def test_a_bomb_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mat_file, "MOST_BYTES", 10**6)
    packed = zlib.compress(bytes(10**7))
    with pytest.raises(ValueError, match="unpacks to more than 1,000,000 bytes"):
        read_structs(saved()[:128] + struct.pack("<2I", 15, len(packed)) + packed, "synsets")
