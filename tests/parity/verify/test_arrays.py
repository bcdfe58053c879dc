"""Files of arrays: what is written is read, and anything else is refused before memory is taken."""

from __future__ import annotations

import io
import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from parity.verify.arrays import DamagedError, named, read, write


def written(meta: Any, **arrays: Any) -> bytes:
    file = io.BytesIO()
    write(file, meta, arrays)
    return file.getvalue()


def with_header(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_what_is_written_is_read():
    arrays = {
        "x": np.arange(6.0).reshape(2, 3),
        "half": np.ones(3, ml_dtypes.bfloat16),
        "none": np.zeros((0, 2), np.int8),
        "one": np.asarray(1 + 2j),
    }
    meta, found = read(io.BytesIO(written({"a": [1]}, **arrays)))
    assert meta == {"a": [1]}
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    found["x"][0] = 7  # it can be written to


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 64,
        (2**62).to_bytes(8, "little") + b"{}",
        with_header(b"no JSON"),
        with_header(b"[" * 100_000),
        with_header({"meta": {}}),
        with_header({"meta": [], "arrays": []}),
        with_header({"meta": {}, "arrays": [["x", "float64", [2**39]]]}),
        with_header({"meta": {}, "arrays": [["x", "float64", [-1]]]}, bytes(8)),
        with_header({"meta": {}, "arrays": [["x", "object", [1]]]}, bytes(8)),
        with_header({"meta": {}, "arrays": [["x", "float64", [True]]]}, bytes(8)),
        with_header({"meta": {}, "arrays": [["x", "float64", 3]]}, bytes(24)),
        written({}, x=np.ones(3))[:-1],
        written({}, x=np.ones(3)) + b"\x00",
    ],
)
def test_other_files_are_refused(data: bytes):
    with pytest.raises(DamagedError):
        read(io.BytesIO(data))


def test_types_that_no_file_holds_are_refused():
    with pytest.raises(ValueError, match="x holds object"):
        written({}, x=np.array([None]))


def test_outputs_have_names():
    x = np.ones(1)
    assert [name for name, _ in named(x)] == [""]
    assert [name for name, _ in named({"b": x, "a": (x, None, [x, 3])})] == ["a[0]", "a[2][0]", "b"]
