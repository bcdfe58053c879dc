"""Pickles that are larger than they look."""

from __future__ import annotations

import io
import pickle

import pytest

from t2t_common.pickles import operations

TWICE = {
    "DUP": b")" + b"2\x86" * 60,
    "memory": b")" + b"".join(b"q%c" % i + b"h%c" % i + b"\x86" for i in range(60)),
    "MEMOIZE": b")" + b"".join(b"\x94h%c" % i + b"\x86" for i in range(60)),
    "wide": b")" + b"(" * 20 + b"222t" * 20,
    "frozen": b"(" + b")" + b"2\x86" * 60 + b"\x91",
}
"""A tuple of the same tuple of the same tuple ..."""


@pytest.mark.parametrize("twice", TWICE.values(), ids=TWICE)
def test_an_object_that_holds_itself_again_and_again_is_seen(twice: bytes):
    with pytest.raises(pickle.UnpicklingError, match="again and again"):
        for _ in operations(io.BytesIO(b"\x80\x04" + twice + b"."), 10_000):
            pass


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_is_as_large_as_it_looks_passes(protocol: int):
    shared = ("x" * 50, 1.5, (1, 2, 3))
    content = {"a": [shared] * 100, 2: {"b": (shared, shared)}, "s": {1, 2}, "n": None, "big": 10**30, "e": ()}
    data = pickle.dumps(content, protocol)
    names = [name for name, _ in operations(io.BytesIO(data), 10 * len(data))]
    assert names[-1] == "STOP"
    with pytest.raises(ValueError, match=r"exhausted|not enough|no newline"):
        for _ in operations(io.BytesIO(data[:-1]), 10 * len(data)):
            pass


def test_only_the_first_of_several_is_read():
    file = io.BytesIO(pickle.dumps(1) + pickle.dumps("two"))
    assert [arg for _, arg in operations(file, 100) if arg is not None] != []
    assert pickle.load(file) == "two"
