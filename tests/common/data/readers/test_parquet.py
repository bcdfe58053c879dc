"""Parquet shards as published on the Hugging Face Hub: read by row group, named where they make no sense."""

from __future__ import annotations

import json
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from t2t_common.data import fingerprint, open_source
from t2t_common.data.classes import for_head
from t2t_common.data.fingerprint import identify
from t2t_common.data.images import UnreadableImageError
from t2t_common.data.readers import parquet
from t2t_common.data.readers.sources import notes_of
from t2t_config.class_names import imagenet_classes
from tests.common.data.readers.test_shards import jpeg, read_all, write_tree

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def hub_info(names: list[str] | None, label: str = "label") -> dict[bytes, bytes]:
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    if names is not None:
        features[label] = {"_type": "ClassLabel", "names": names}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def write_parquet(
    path: Path,
    images: list[bytes | None],
    labels: list[int | None],
    names: list[str] | None = None,
    *,
    columns: tuple[str, str] = ("image", "label"),
    rows: int = 2,
) -> Path:
    """A shard with row groups of two images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = [None if image is None else {"bytes": image, "path": "../../etc/passwd"} for image in images]
    schema = pa.schema([(columns[0], IMAGE), (columns[1], pa.int64())], metadata=hub_info(names, columns[1]))
    pq.write_table(pa.table([pa.array(stored, IMAGE), pa.array(labels)], schema=schema), path, row_group_size=rows)
    return path


def pets(tmp_path: Path, names: list[str] | None = ["cat", "dog"]) -> Path:  # noqa: B006
    """The tree of `write_tree` as a repository of the Hub: two shards and one, with an unlabelled test split."""
    tree, folder = write_tree(tmp_path / "tree"), tmp_path / "pets"
    train, val = (read_all(open_source(tree, split)) for split in ("train", "val"))  # type: ignore[arg-type]
    for file, part in (
        ("train-00000-of-00002-0123456789abcdef", train[:5]),
        ("train-00001-of-00002-fedcba9876543210", train[5:]),
        ("validation-00000-of-00001", val),
        ("test-00000-of-00001", [(data, -1) for data, _ in val]),
    ):
        images, labels = zip(*part, strict=True)
        write_parquet(folder / "data" / f"{file}.parquet", list(images), list(labels), names)
    (folder / "README.md").write_text("# Pets\n")
    return folder


def test_a_repository_of_the_hub_is_the_folder_that_it_was_made_of(tmp_path: Path):
    folder = pets(tmp_path)
    for split in ("train", "val"):
        made_of = open_source(tmp_path / "tree", split)
        for place in (folder, folder / "data"):
            read = open_source(place, split)
            assert read_all(read) == read_all(made_of)
            assert [read[i][0].tobytes() for i in range(3)] == [made_of[i][0].tobytes() for i in range(3)]
            assert (read.num_classes, read.class_names) == (2, ["cat", "dog"])
    assert open_source(folder, "train").name(5).endswith("train-00001-of-00002-fedcba9876543210.parquet[0]")


README = """---
dataset_info:
  features:
  - name: image
    dtype: image
  - name: label
    dtype:
      class_label:
        names:
          '0': cat
          '1': 'dog''s'
  splits:
  - name: train
---
# Pets
"""


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("README.md", README, ["cat", "dog's"]),
        ("dataset_infos.json", json.dumps({"default": {"features": {"label": {"names": ["a", "b"]}}}}), ["a", "b"]),
        ("data/classes.txt", "x\ny\n", ["x", "y"]),
        ("README.md", README.replace("'1'", "'2'"), None),
        ("dataset_infos.json", "[" * 100_000, None),
        ("dataset_infos.json", '{"default": {"features": {"label": {"names": ["a", 1]}}}}', None),
    ],
)
def test_where_class_names_are_looked_for(tmp_path: Path, name: str, content: str, expected: list[str] | None):
    folder = pets(tmp_path, names=None)
    (folder / name).write_text(content)
    source = open_source(folder, "train")
    assert (source.class_names, source.num_classes) == (expected, 2)


def test_imagenet_of_the_hub_is_matched_with_the_outputs_of_published_weights(tmp_path: Path):
    """It calls its second crane crane2."""
    names = list(imagenet_classes().values())
    names[names.index("crane", names.index("crane") + 1)] = "crane2"
    write_parquet(tmp_path / "validation-00000-of-00001.parquet", [jpeg(0)], [517], names)
    source = open_source(tmp_path, "val")
    assert source.class_names == list(imagenet_classes())
    assert "those of ImageNet-1k, in its order, 1 spelled differently" in "".join(notes_of(source))
    assert for_head(source, 1000)[0] is source
    write_parquet(tmp_path / "validation-00000-of-00001.parquet", [jpeg(0)], [5], names[::-1])
    assert open_source(tmp_path, "val").class_names == names[::-1]


def test_other_columns(tmp_path: Path):
    """CIFAR-100 of the Hub; plain bytes; a label among other numbers."""
    write_parquet(tmp_path / "a" / "train.parquet", [jpeg(0)], [7], columns=("img", "fine_label"))
    table = pa.table({"photo": pa.array([jpeg(1)]), "breed": pa.array([1], pa.int32()), "note": ["x"]})
    for name in "bcd":
        (tmp_path / name).mkdir()
    pq.write_table(table, tmp_path / "b" / "train.parquet")
    more = table.append_column("id", pa.array([10**6]))
    pq.write_table(more, tmp_path / "c" / "train.parquet")
    pq.write_table(more.replace_schema_metadata(hub_info(["cat", "dog"], "breed")), tmp_path / "d" / "train.parquet")
    for folder, expected in (("a", (jpeg(0), 7)), ("b", (jpeg(1), 1)), ("d", (jpeg(1), 1))):
        assert open_source(tmp_path / folder, "train").read(0) == expected  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"photo: binary, breed: int32, note: string, id: int64: expected one .*image"):
        open_source(tmp_path / "c", "train")


# --- Access -------------------------------------------------------------------------------------------------


def test_in_order_every_row_group_is_read_once_and_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    read: list[int] = []
    original = parquet.ParquetSource._read_group
    monkeypatch.setattr(parquet.ParquetSource, "_read_group", lambda self, n: read.append(n) or original(self, n))
    source = open_source(pets(tmp_path), "train")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(source.__getitem__, range(7)))
    assert sorted(read) == [0, 1, 2, 3]  # of 2, 2 and 1 images, and of 2
    monkeypatch.setattr(parquet, "MOST_KEPT", 1)
    source = open_source(tmp_path / "pets", "train")
    read.clear()
    for index in (0, 1, 6, 0):
        source[index]
        assert len(source._kept._entries) == 1  # type: ignore[attr-defined]
    assert read == [0, 3, 0]


def test_many_threads_and_other_processes_read_the_same(tmp_path: Path):
    source = open_source(pets(tmp_path), "train")
    expected = read_all(source)  # type: ignore[arg-type]
    copy = pickle.loads(pickle.dumps(source))
    order = [index for start in range(7) for index in range(start, 7, 3)] * 5
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(copy.read, order)) == [expected[index] for index in order]


def test_a_row_group_that_would_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As one image that a dictionary stores once for many rows."""
    write_parquet(tmp_path / "train.parquet", [bytes(100_000)] * 2000, [0] * 2000, rows=2000)
    assert (tmp_path / "train.parquet").stat().st_size < 200_000
    monkeypatch.setattr(parquet, "MOST_GROUP", 10**7)
    source = open_source(tmp_path, "train")
    with pytest.raises(ValueError, match=r"train.parquet \(row group 0 has more than 10,000,000 bytes"):
        source[0]


# --- What is wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 3, 100, 1000, -1, -9])
def test_a_shard_that_is_cut_is_named(tmp_path: Path, keep: int):
    path = next(pets(tmp_path).glob("data/validation*"))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"cannot read .*validation-00000-of-00001.parquet .*: get another copy"):
        open_source(tmp_path / "pets", "val")


def test_a_missing_shard_is_named(tmp_path: Path):
    next(pets(tmp_path).glob("data/train-00000*")).unlink()
    with pytest.raises(ValueError, match=r"1 of 2 shards are missing .* number 0"):
        open_source(tmp_path / "pets", "train")


@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [
        ([None], [0], UnreadableImageError, r"parquet\[0\] \(it has no bytes\): remove the row"),
        ([b"x"], [None], ValueError, r"parquet\[0\] has no label"),
        ([b"x"], [2], ValueError, r"parquet\[0\] has label 2, beyond the classes 0\.\.1"),
        ([b"x"], [-1], ValueError, r"parquet\[0\] has label -1"),
        ([b"x"], [1], UnreadableImageError, r"unreadable image .*parquet\[0\]"),
    ],
)
def test_rows_that_make_no_sense(tmp_path: Path, images: list[Any], labels: list[Any], error: Any, message: str):
    write_parquet(tmp_path / "train.parquet", images, labels, ["cat", "dog"])
    source = open_source(tmp_path, "train")
    with pytest.raises(error, match=message):
        source[0]


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"text": ["x"], "label": [1]}),
        pa.table({"image": [b"x"], "label": ["cat"]}),
        pa.table({"image": [{"path": "/etc/passwd"}], "label": [1]}),  # nothing but bytes in the file is read
        pa.table({"label": [1]}),
    ],
)
def test_columns_that_are_not_there(tmp_path: Path, table: Any):
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"train.parquet has the columns .*: expected one with image files"):
        open_source(tmp_path, "train")


def test_shards_of_other_columns(tmp_path: Path):
    write_parquet(tmp_path / "train-0.parquet", [jpeg(0)], [0])
    write_parquet(tmp_path / "train-1.parquet", [jpeg(0)], [0], columns=("img", "label"))
    with pytest.raises(ValueError, match=r"train-1.parquet has the columns img, label, .*train-0.parquet others"):
        open_source(tmp_path, "train")


def test_damage_in_a_row_group_is_seen_with_page_checksums(tmp_path: Path):
    table = pa.table({"image": [jpeg(0)] * 3, "label": [0, 1, 0]})
    path = tmp_path / "train.parquet"
    pq.write_table(table, path, write_page_checksum=True, compression="none")
    data = bytearray(path.read_bytes())
    data[data.index(jpeg(0)) + 300] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"cannot read .*train.parquet \(.*: get another copy"):
        open_source(tmp_path, "train")[0]


def test_changes_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of the contents, or if they are too much, of sizes and directories."""
    folder = pets(tmp_path)
    path = next(folder.glob("data/validation*"))
    before = identify(open_source(folder, "val"))
    assert before["parts"] == {path.name: [3, before["parts"][path.name][1]]}
    monkeypatch.setattr(fingerprint, "MOST_BYTES", 0)
    by_end = identify(open_source(folder, "val"))
    assert by_end["compared"] == "names and sizes and ends"
    write_parquet(path, [jpeg(0), jpeg(1), jpeg(2)], [1, 1, 1], ["cat", "dog"])
    assert identify(open_source(folder, "val")) != by_end
    monkeypatch.undo()
    assert identify(open_source(folder, "val")) != before


def test_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pets(tmp_path)
    monkeypatch.delitem(sys.modules, "t2t_common.data.readers.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"train-00000.*parquet needs a package .*: pip install pyarrow"):
        open_source(tmp_path / "pets", "train")
