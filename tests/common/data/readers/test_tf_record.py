"""TFRecord shards of TFDS: read as they are written, and refused where they are not whole."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path

import pytest

from t2t_common.data import fingerprint, open_source
from t2t_common.data.fingerprint import identify
from t2t_common.data.images import UnreadableImageError
from t2t_common.data.readers.tf_example import encode_example, example_class
from t2t_common.io.crc32c import crc32c
from tests.common.data.readers.test_shards import jpeg, read_all, write_tree


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2T_CACHE", str(tmp_path / "cache"))


def framed(record: bytes) -> bytes:
    def checksum(data: bytes) -> bytes:
        crc = crc32c(data)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)

    length = struct.pack("<Q", len(record))
    return length + checksum(length) + record + checksum(record)


def write_tf_records(path: Path, records: list[bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(map(framed, records)))
    return path


def feature(kind: str, **facts: object) -> dict[str, object]:
    return {"pythonClassName": f"tensorflow_datasets.core.features.{kind}", kind: facts}


def write_tfds(folder: Path, splits: dict[str, list[list[bytes]]], names: list[str] | None = None) -> Path:
    """The files of a data set of TFDS: shards, names of classes, features and lengths of the shards."""
    folder.mkdir(parents=True)
    for split, shards in splits.items():
        for number, records in enumerate(shards):
            write_tf_records(folder / f"pets-{split}.tfrecord-{number:05d}-of-{len(shards):05d}", records)
    if names is not None:
        (folder / "label.labels.txt").write_text("\n".join(names) + "\n")
    features = {"image": feature("image"), "label": feature("classLabel", numClasses="2")}
    (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": features}}))
    lengths = [
        {"name": split, "shardLengths": [str(len(records)) for records in shards]} for split, shards in splits.items()
    ]
    (folder / "dataset_info.json").write_text(json.dumps({"name": "pets", "splits": lengths}))
    return folder


def records_of(tree: Path, split: str) -> list[bytes]:
    source = open_source(tree, split)  # type: ignore[arg-type]
    return [encode_example(data, label) for data, label in read_all(source)]  # type: ignore[arg-type]


def pets(tmp_path: Path, names: list[str] | None = ["cat", "dog"]) -> Path:  # noqa: B006
    tree = write_tree(tmp_path / "tree")
    train = records_of(tree, "train")
    splits = {"train": [train[:3], train[3:]], "test": [records_of(tree, "val")]}
    return write_tfds(tmp_path / "tensorflow_datasets" / "pets" / "1.0.0", splits, names)


def test_a_data_set_of_tfds_is_the_folder_that_it_was_made_of(tmp_path: Path):
    folder = pets(tmp_path)
    for place in (folder, tmp_path / "tensorflow_datasets"):
        for split in ("train", "val"):
            read, made_of = open_source(place, split), open_source(tmp_path / "tree", split)
            assert read_all(read) == read_all(made_of)
            assert (read.num_classes, read.class_names) == (2, ["cat", "dog"])
    assert open_source(folder, "train").name(4) == f"{folder}/pets-train.tfrecord-00001-of-00002[1]"


def test_classes_are_numbered_if_only_their_number_is_known(tmp_path: Path):
    folder = pets(tmp_path, names=None)
    source = open_source(folder, "train")
    assert (source.num_classes, source.class_names) == (2, None)
    (folder / "features.json").unlink()
    with pytest.raises(ValueError, match=r"are not named: write classes.txt"):
        open_source(folder, "train")


def test_features_of_other_names(tmp_path: Path):
    example = example_class()()
    example.features.feature["photo"].bytes_list.value.append(jpeg(1))
    example.features.feature["breed"].int64_list.value.append(1)
    folder = write_tfds(tmp_path / "data", {"train": [[example.SerializeToString()]]})
    features = {"photo": feature("image"), "breed": feature("classLabel", numClasses="2"), "id": feature("text")}
    (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": features}}))
    assert read_all(open_source(folder, "train")) == [(jpeg(1), 1)]
    (folder / "breed.labels.txt").write_text("poodle\npug\n")
    assert open_source(folder, "train").class_names == ["poodle", "pug"]
    features["species"] = feature("classLabel", numClasses="2")
    (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": features}}))
    with pytest.raises(ValueError, match=r"features.json has the features .*photo, breed, id, species.*one label"):
        open_source(folder, "train")


def test_a_shard_cut_anywhere_is_refused(tmp_path: Path):
    """Between two records it is whole as a file; then `dataset_info.json` tells."""
    (path,) = pets(tmp_path).glob("*test*")
    whole = path.read_bytes()
    for keep in range(0, len(whole), 97):
        path.write_bytes(whole[:keep])
        with pytest.raises(ValueError, match=r"00000-of-00001 is (truncated within record|empty).*get another copy"):
            open_source(path.parent, "val")
    first = len(framed(encode_example(*read_all(open_source(tmp_path / "tree", "val"))[0])))
    path.write_bytes(whole[:first])
    with pytest.raises(ValueError, match=r"dataset_info.json says 3 records in .*, there are 1: get the data again"):
        open_source(path.parent, "val")


def test_a_missing_shard_is_named(tmp_path: Path):
    folder = pets(tmp_path)
    (folder / "pets-train.tfrecord-00000-of-00002").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 shards are missing .* number 0"):
        open_source(folder, "train")


def test_every_bit_of_the_framing_is_checked(tmp_path: Path):
    """Of a length at once, of a record when it is read."""
    record = encode_example(jpeg(0), 0)
    folder = write_tfds(tmp_path / "data", {"train": [[record, record]]})
    path = next(folder.glob("*tfrecord*"))
    whole = path.read_bytes()
    for place in [*range(12), len(record) // 2, len(record) + 12, len(record) + 15]:
        for bit in (0, 7):
            data = bytearray(whole)
            data[place] ^= 1 << bit
            path.write_bytes(data)
            if place < 12:
                with pytest.raises(ValueError, match="CRC-32C of the length of record 0 differs"):
                    open_source(folder, "train")
                continue
            source = open_source(folder, "train")
            with pytest.raises(UnreadableImageError, match=r"record .*\[0\] \(its CRC-32C differs\)"):
                source[0]
            assert source.read(1) == (jpeg(0), 0)


def test_files_that_are_no_tf_records(tmp_path: Path):
    folder = write_tfds(tmp_path / "data", {"train": [[b"x"]]})
    path = next(folder.glob("*tfrecord*"))
    for content, message in (
        (b"\x1f\x8b" + bytes(40), "is compressed: unpack it"),
        (b"PK\x03\x04" + bytes(range(60)), "or it is no TFRecord file"),
        (struct.pack("<Q", 2**63) + bytes(4), "CRC-32C of the length of record 0 differs"),
        (framed(b"")[:12].replace(bytes(8), struct.pack("<Q", 2**63)), "CRC-32C of the length"),
        (b"", "is empty"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            open_source(folder, "train")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (encode_example(b"x", 2), r"\[0\] has label 2, beyond the classes 0\.\.1"),
        (encode_example(b"x", -1), r"\[0\] has label -1"),
        (b"", r"\[0\] has the features \[\]: expected image"),
        (b"\xff\xff", r"unreadable record .*\[0\]"),
    ],
)
def test_records_that_make_no_sense(tmp_path: Path, record: bytes, message: str):
    source = open_source(write_tfds(tmp_path / "data", {"train": [[record]]}), "train")
    with pytest.raises(ValueError, match=message):
        source[0]


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
def test_damaged_metadata(tmp_path: Path, name: str):
    folder = pets(tmp_path)
    for content in (b"{", b"\xff", b"[" * 100_000):
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"cannot read .*{name} .*get another copy"):
            open_source(folder, "train")
    for content in (b"[]", b"{}", b'{"splits": [1, {"name": "train", "shardLengths": 7}]}'):
        (folder / name).write_bytes(content)
        with contextlib.suppress(ValueError):
            open_source(folder, "train")


def test_the_identity_has_the_checksum_of_every_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fingerprint, "MOST_BYTES", 0)
    folder = pets(tmp_path)
    before = identify(open_source(folder, "val"))
    assert before["compared"] == "names, sizes, places and checksums"
    path = next(folder.glob("*test*"))
    examples = [encode_example(data, 1 - label) for data, label in read_all(open_source(folder, "val"))]  # type: ignore[arg-type]
    write_tf_records(path, examples)
    after = identify(open_source(folder, "val"))
    assert before["parts"][path.name][0] == after["parts"][path.name][0] == 3
    assert before != after
