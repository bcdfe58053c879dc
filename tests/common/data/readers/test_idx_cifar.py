"""The Python version of CIFAR: pickles of Python 2, from which nothing but arrays and plain values are read."""

from __future__ import annotations

import io
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t2t_common.data import open_source
from t2t_common.data.readers.idx_cifar import read_cifar
from tests.common.data.readers.test_readers import write_cifar


def python_2(value: Any) -> bytes:
    """Pickle as cPickle of Python 2 does with protocol 2: text is BINSTRING, arrays hold their bytes as text."""

    def write(value: Any) -> bytes:
        if isinstance(value, str | bytes):
            data = value.encode() if isinstance(value, str) else value
            return b"T" + struct.pack("<i", len(data)) + data
        if value is None:
            return b"N"
        if isinstance(value, bool):
            return b"\x89" if not value else b"\x88"
        if isinstance(value, int):
            return b"J" + struct.pack("<i", value)
        if isinstance(value, tuple):
            return b"(" + b"".join(map(write, value)) + b"t"
        if isinstance(value, list):
            return b"](" + b"".join(map(write, value)) + b"e"
        if isinstance(value, dict):
            return b"}(" + b"".join(write(key) + write(item) for key, item in value.items()) + b"u"
        dtype = b"cnumpy\ndtype\n" + write(("u1", 0, 1)) + b"R" + write((3, "|", None, None, None, -1, -1, 0)) + b"b"
        made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + write((0,)) + write("b") + b"tR"
        return made + b"(" + write(1) + write(value.shape) + dtype + write(False) + write(value.tobytes()) + b"tb"

    return b"\x80\x02" + write(value) + b"."


def batch(images: np.ndarray, labels: list[int], *, hundred: bool) -> dict[str, Any]:
    facts = {"fine_labels": labels, "coarse_labels": [0] * len(labels)} if hundred else {"labels": labels}
    data = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return {"filenames": [f"{label}.png" for label in labels], "batch_label": "batch", "data": data, **facts}


def write_pickles(folder: Path, *, hundred: bool, dump: Any = python_2) -> Path:
    """The same images and labels as `write_cifar`."""
    images = write_cifar(folder, hundred=hundred)
    labels = [n + (90 if hundred else 5) for n in range(5)]
    for path in folder.glob("*.bin"):
        path.with_suffix("").write_bytes(dump(batch(images, labels, hundred=hundred)))
        path.unlink()
    names = [f"class {n}" for n in range(100 if hundred else 10)]
    meta = {"fine_label_names": names, "coarse_label_names": []} if hundred else {"label_names": names, "num_vis": 3072}
    (folder / ("meta" if hundred else "batches.meta")).write_bytes(dump(meta))
    return folder


@pytest.mark.parametrize("dump", [python_2, *(lambda v, p=p: pickle.dumps(v, p) for p in (2, 3, 4))])
@pytest.mark.parametrize("hundred", [False, True])
def test_both_versions_have_the_same_images(tmp_path: Path, hundred: bool, dump: Any):
    write_cifar(tmp_path / "binary", hundred=hundred)
    write_pickles(tmp_path / "data" / "cifar-py", hundred=hundred, dump=dump)
    classes = 100 if hundred else 10
    for split in ("train", "val"):
        binary = read_cifar(tmp_path / "binary", classes, split)  # type: ignore[arg-type]
        source = open_source(tmp_path / "data", split)  # type: ignore[arg-type]
        np.testing.assert_array_equal(source.arrays[0], binary[0])  # type: ignore[attr-defined]
        np.testing.assert_array_equal(source.arrays[1], binary[1])  # type: ignore[attr-defined]
        assert (source.num_classes, source.class_names) == (classes, [f"class {n}" for n in range(classes)])
        assert binary[3] is None


class Code:
    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


BOMB: Any = "x"
for _ in range(40):
    BOMB = (BOMB, BOMB)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"data": Code()}, 2), r"test_batch would run code when loaded \(.*system\), so it is refused"),
        (python_2({"data": "x"})[:-9], r"cannot read .*test_batch .*: get another copy"),
        (b"", r"cannot read .*test_batch"),
        (b"\x80\x02" + b"(" * 10_000, r"cannot read .*test_batch"),
        (pickle.dumps(BOMB, 2), r"cannot read .*test_batch \(an object that expands by repeated use\)"),
        (pickle.dumps([1], 2), r"test_batch \(it holds a list, no dictionary\)"),
        (python_2({"labels": [1]}), r"test_batch has no images"),
        (python_2({"data": np.zeros((2, 9), np.uint8), "labels": [1, 2]}), r"test_batch has no images"),
        (python_2({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}), r"test_batch has no list of 2 labels"),
        (python_2({"data": np.zeros((1, 3072), np.uint8), "labels": ["x"]}), r"test_batch has no list of 1 labels"),
        (python_2({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}), r"test_batch has label 10, beyond 0\.\.9"),
        (python_2({"data": np.zeros((1, 3072), np.uint8), "labels": [-1]}), r"test_batch has label -1"),
        (python_2({"data": np.zeros((0, 3072), np.uint8), "labels": []}), r"test_batch has no list of 0 labels"),
    ],
)
def test_pickles_that_are_not_cifar(tmp_path: Path, content: bytes, message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_pickles(tmp_path / "data", hundred=False)
    (tmp_path / "data" / "test_batch").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path / "data", "val")
    assert not Path("ran").exists()


def test_an_array_that_claims_more_than_it_holds(tmp_path: Path):
    write_pickles(tmp_path, hundred=False)
    pickled = python_2({"data": np.zeros((1, 3072), np.uint8), "labels": [1]})
    size = struct.pack("<i", 3072)
    assert pickled.count(size) == 2  # the axis, and the length of the bytes
    place = pickled.index(size)
    (tmp_path / "test_batch").write_bytes(pickled[:place] + struct.pack("<i", 2**31 - 1) + pickled[place + 4 :])
    with pytest.raises(ValueError, match=r"cannot read .*test_batch \(cannot reshape"):
        open_source(tmp_path, "val")


@pytest.mark.parametrize("names", [["a"] * 9, "airplane", None])
def test_class_names_that_do_not_fit(tmp_path: Path, names: Any):
    write_pickles(tmp_path, hundred=False)
    (tmp_path / "batches.meta").write_bytes(python_2({"label_names": names} if names else {}))
    with pytest.raises(ValueError, match=r"batches.meta has no list of 10 class names"):
        open_source(tmp_path, "train")


def test_missing_batches_are_named(tmp_path: Path):
    (write_pickles(tmp_path, hundred=False) / "data_batch_3").unlink()
    with pytest.raises(
        ValueError, match=r"no data_batch_3 in .*: this version of CIFAR has data_batch_1, data_batch_2"
    ):
        open_source(tmp_path, "train")


def test_the_pickles_of_these_tests_are_pickles():
    """Python's own pickle reads what these tests write for Python 2."""
    value = {"data": np.arange(6, dtype=np.uint8).reshape(2, 3)}
    assert pickle.load(io.BytesIO(python_2(value)), encoding="bytes")[b"data"].tolist() == [[0, 1, 2], [3, 4, 5]]
