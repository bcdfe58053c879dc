"""What lies beside the weights of an intact file is left alone, and never becomes a weight."""

from __future__ import annotations

import collections
import datetime
import decimal
import fractions
import pathlib
import pickle
import random
import types
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from t2t_torch.checkpoint_file import read_checkpoint
from t2t_torch.weights.ignored_entries import INERT
from t2t_torch.weights.safe_unpickle import read_pickle
from tests.support import foreign

WEIGHTS = np.arange(6, dtype=np.float32).reshape(2, 3)

BESIDE: dict[str, Any] = {
    "numpy's random state": np.random.RandomState(0).get_state(),
    "random generators": [np.random.RandomState(0), np.random.default_rng(0), np.random.Generator(np.random.Philox(1))],
    "random's state": random.Random(0).getstate(),
    "unsigned": [np.arange(3, dtype=kind) for kind in ("u2", "u4", "u8")],
    "complex": [np.zeros(2, kind) for kind in ("c8", "c16")],
    "texts": [np.array(["a", "bc"]), np.array([b"a"]), np.str_("abc"), np.bytes_(b"a")],
    "objects": [np.array([{}, None], dtype=object), np.zeros(2, "f4,f4"), np.longdouble(1), np.zeros(2, "g")],
    "numpy's scalars": [np.complex64(1j), np.uint32(3), np.bool_(True), np.datetime64("2020-01-01"), np.float16(2)],
    "numpy's times": [np.zeros(2, "M8[s]"), np.zeros(2, "m8[D]")],
    "numpy's types": [np.dtype("f4"), np.dtype("u4"), np.float32, np.ma.array([1.0, 2.0], mask=[0, 1])],
    "empty arrays": [np.empty(0), np.empty((0, 5), np.float32), np.empty(0, "u4"), np.empty(0, "U3")],
    "paths": [pathlib.Path("/a/b"), pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("c:/x")],
    "a path as a key": {pathlib.Path("a"): 1, datetime.date(2020, 1, 2): 2},
    "dates": [datetime.date(2020, 1, 2), datetime.time(1), datetime.timedelta(1), datetime.datetime(2020, 1, 2)],
    "a date with its zone": datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC),
    "defaultdicts": [collections.defaultdict(kind) for kind in (list, int, dict, float, set, str, None)],
    "a full defaultdict": collections.defaultdict(list, a=[1], b=[np.str_("x")]),
    "collections": [collections.deque([1, 2], maxlen=3), collections.OrderedDict(a=1), collections.Counter("aab")],
    "numbers": [decimal.Decimal("1.5"), fractions.Fraction(1, 2), 2**70, 1j],
    "plain values": [frozenset([1]), {1, 2}, range(3), slice(1), uuid.UUID(int=3), b"", types.SimpleNamespace(a=1)],
    "PyTorch's version": torch.__version__,
}

WRITERS: dict[str, Callable[[Any, Path], Any]] = {
    "zip": foreign.save_zip,
    "legacy": foreign.save_legacy,
    **{f"plain {n}": (lambda content, path, n=n: foreign.save_paddle(content, path, n)) for n in (2, 4)},
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", BESIDE)
def test_values_beside_the_weights_are_left_alone(tmp_path: Path, name: str, writer: str):
    weights = WEIGHTS if writer.startswith("plain") else torch.from_numpy(WEIGHTS)
    WRITERS[writer]({"state_dict": {"head.weight": weights}, "beside": BESIDE[name]}, tmp_path / "w.pth")
    found = read_checkpoint(tmp_path / "w.pth")
    assert (found.entry, list(found.state_dict)) == ("state_dict", ["head.weight"])
    np.testing.assert_array_equal(found.state_dict["head.weight"].numpy(), WEIGHTS)


@pytest.mark.parametrize("writer", ["zip", "legacy", "plain 2"])
def test_weights_in_a_defaultdict_are_read(tmp_path: Path, writer: str):
    weights = collections.defaultdict(list, {"head.weight": WEIGHTS})
    WRITERS[writer]({"state_dict": weights}, tmp_path / "w.pth")
    np.testing.assert_array_equal(read_checkpoint(tmp_path / "w.pth").state_dict["head.weight"].numpy(), WEIGHTS)


@pytest.mark.parametrize("name", ["numpy's random state", "unsigned", "paths", "dates", "texts", "defaultdicts"])
def test_none_of_them_is_taken_for_a_weight(tmp_path: Path, name: str):
    first = BESIDE[name][0]
    torch.save({"state_dict": {"head.weight": torch.from_numpy(WEIGHTS), "strange": first}}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth holds no state dict \(strange\)"):
        read_checkpoint(tmp_path / "w.pth")


def test_what_stands_for_them_takes_no_memory(tmp_path: Path):
    """`bytes(10**12)` and `list(...)` as a file may call them."""
    for name, argument in (("bytes", b"\x8a\x06\x00\x10\xa5\xd4\xe8\x00"), ("list", b"X\x03\x00\x00\x00abc")):
        (tmp_path / "w.pdparams").write_bytes(b"\x80\x02c__builtin__\n" + name.encode() + b"\n" + argument + b"\x85R.")
        assert not isinstance(read_pickle(tmp_path / "w.pdparams"), list)


def test_nothing_of_the_list_is_the_thing_itself():
    """Only classes of the module stand there: none of Python's or numpy's own is ever called."""
    assert {value.__module__ for value in INERT.values()} == {"t2t_torch.weights.ignored_entries"}
    assert pickle.loads not in INERT.values()
