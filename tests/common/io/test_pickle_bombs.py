"""Pickles that are larger than they look."""

from __future__ import annotations

import argparse
import io
import pickle
from collections import OrderedDict, defaultdict

import pytest

from t2t_common.io.pickle_bombs import MAX_DEPTH, operations

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
    with pytest.raises(pickle.UnpicklingError, match="repeated use"):
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


def passes(pickled: bytes) -> None:
    for _ in operations(io.BytesIO(pickled), 10 * len(pickled)):
        pass


DEEP = {
    "tuples": b")" + b"\x85" * 250_000,
    "lists": b"]" * 5000 + b"a" * 4999,
    "marks": b"(" * 5000 + b"t" * 5000,
    "dictionaries": b"}K\x00" * 500 + b"}" + b"s" * 500,
    "frozen sets": b"(" * 500 + b"\x91" * 500,
    "calls": b"cx\ny\n" + b")R" * 5000,
    "by memory": b")q\x00" + b"h\x00\x85q\x00" * 5000,
    "a list in a list that is in a list already": b"]q\x00" + b"]q\x01h\x00h\x01a0h\x01q\x000" * 5000,
}


@pytest.mark.parametrize("deep", DEEP.values(), ids=DEEP)
def test_objects_in_objects_in_objects_are_seen(deep: bytes):
    """The hash of tuples in tuples takes a frame of C for each: 250 KB ended the process."""
    with pytest.raises(pickle.UnpicklingError, match=r"deep|inside"):
        passes(b"\x80\x04" + deep + b".")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_is_long_is_not_deep(protocol: int):
    """Pickle writes lists and dictionaries in parts of a thousand, and objects twice that are there twice."""
    shared = [1.0, 2.0]
    deep: object = ()
    for _ in range(MAX_DEPTH - 10):
        deep = (deep,)
    args = argparse.Namespace(many=list(range(250_000)), table=dict.fromkeys(range(5000), shared))
    groups = defaultdict(list, a=[{"lr": 1, "betas": (0.9, 0.99)} for _ in range(3000)])
    passes(pickle.dumps({"args": args, "order": OrderedDict(a=shared), "g": groups, "deep": deep}, protocol))


CHANGES = {
    "GLOBAL": b"cargparse\nNamespace\n",
    "STACK_GLOBAL": b"\x8c\x08argparse\x8c\x09Namespace\x93",
    "by memory": b"cargparse\nNamespace\nq\x000h\x00",
    "DUP": b"cargparse\nNamespace\n2",
    "after a change of something else": b"cargparse\nNamespace\n)\x81}b0cargparse\nNamespace\n",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_state_of_a_class_or_function_is_seen(change: bytes):
    with pytest.raises(pickle.UnpicklingError, match="it would change GLOBAL"):
        passes(b"\x80\x04" + change + b"N}\x8c\x01xK\x01s\x86b.")
