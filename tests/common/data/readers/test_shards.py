"""Tar and ArrayRecord shards: what was written is read, and what is damaged is named."""

from __future__ import annotations

import io
import json
import pickle
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from t2t_common.data import check_classes, open_source
from t2t_common.data.images import UnreadableImageError
from t2t_common.data.readers import tar as tar_module
from t2t_common.data.readers.sources import EncodedSource
from t2t_common.data.readers.tf_example import encode_example, example_class
from t2t_common.data.readers.write_shards import write_shards
from t2t_config.weights.download import cache_dir

FORMATS = ("tar", "arrayrecord")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2T_CACHE", str(tmp_path / "cache"))


def jpeg(seed: int, side: int = 24) -> bytes:
    data = io.BytesIO()
    pixels = np.random.RandomState(seed).randint(0, 256, (side, side, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(data, "JPEG")
    return data.getvalue()


def write_tree(root: Path) -> Path:
    """Seven training and three validation JPEGs of the classes cat and dog."""
    for split, count in (("train", 7), ("val", 3)):
        for i in range(count):
            path = root / split / ("cat", "dog")[i % 2] / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(i))
    return root


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_records(path: Path, records: list[bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    return path


def read_all(source: EncodedSource) -> list[tuple[bytes, int]]:
    return [source.read(index) for index in range(len(source))]


# --- There and back -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_shards_hold_the_very_files_in_their_order(tmp_path: Path, kind: str):
    tree = write_tree(tmp_path / "tree")
    sources = {split: open_source(tree, split) for split in ("train", "val")}
    assert write_shards(sources, tmp_path / "shards", kind, images_per_shard=3) == 10
    for split, shards in (("train", 3), ("val", 1)):
        assert len(list((tmp_path / "shards").glob(f"{split}-*"))) == shards
        read = open_source(tmp_path / "shards", split)
        assert read_all(read) == read_all(sources[split])
        assert (read.num_classes, read.class_names) == (2, ["cat", "dog"])
        image, label = read[1]
        expected, expected_label = sources[split][1]
        assert label == expected_label
        np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))


@pytest.mark.parametrize("kind", FORMATS)
def test_images_in_memory_become_lossless_files(tmp_path: Path, kind: str):
    source = open_source("digits", "val")
    write_shards({"val": source}, tmp_path / "shards", kind, images_per_shard=1000)
    read = open_source(tmp_path / "shards", "val")
    assert (len(read), read.num_classes, read.class_names) == (360, 10, list("0123456789"))
    for index in range(0, 360, 17):
        assert read[index][1] == source[index][1]
        np.testing.assert_array_equal(np.asarray(read[index][0]), np.asarray(source[index][0]))


@pytest.mark.parametrize("kind", FORMATS)
def test_writing_is_deterministic_and_replaces_nothing(tmp_path: Path, kind: str):
    source = open_source(write_tree(tmp_path / "tree"), "train")
    for name in ("one", "two"):
        write_shards({"train": source}, tmp_path / name, kind, images_per_shard=4)
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert files[0] == files[1]
    assert len(files[0]) == 3
    with pytest.raises(ValueError, match="one exists"):
        write_shards({"train": source}, tmp_path / "one", kind, images_per_shard=4)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path):
    tree = write_tree(tmp_path / "tree")
    source = open_source(tree, "train")
    (tree / "train" / "dog" / "5.jpg").unlink()
    with pytest.raises(ValueError, match=r"cannot read .*5.jpg"):
        write_shards({"train": source}, tmp_path / "shards", "tar", images_per_shard=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tree"]


@pytest.mark.parametrize("kind", FORMATS)
def test_sources_go_to_other_processes_and_are_read_by_many_threads(tmp_path: Path, kind: str):
    write_shards({"val": open_source("digits", "val")}, tmp_path / "shards", kind, images_per_shard=90)
    source = open_source(tmp_path / "shards", "val")
    expected = read_all(source)
    copy = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(copy.read, range(len(copy)))) == expected


# --- Tar ----------------------------------------------------------------------------------------------------


def test_members_of_other_writers(tmp_path: Path):
    """Folders in names, suffixes in capitals, json labels, the .cls before its image, very long names, other files."""
    long = "n" * 150
    write_tar(
        tmp_path / "train" / "a.tar",
        {
            "x/1.JPEG": jpeg(1),
            "x/1.cls": b"3\n",
            "x/1.json": b'{"label": 9}',
            "x/2.cls": b"1",
            "x/2.png": jpeg(2),
            f"{long}.jpg": jpeg(3),
            f"{long}.json": json.dumps({"label": 2, "filename": "z"}).encode(),
            "README.txt": b"hello",
        },
    )
    source = open_source(tmp_path, "train")
    assert read_all(source) == [(jpeg(1), 3), (jpeg(2), 1), (jpeg(3), 2)]
    assert source.num_classes == 4
    assert source.class_names is None
    assert source.name(2).endswith(f"a.tar/{long}.jpg")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-000000.tar", "train"),
        ("imagenet1k-validation-07.tar", "val"),
        ("train/0.tar", "train"),
        ("val/0.tar", "val"),
        ("test-0.tar", "val"),
    ],
)
def test_where_shards_are_looked_for(tmp_path: Path, name: str, split: str):
    write_tar(tmp_path / name, {"0.jpg": jpeg(0), "0.cls": b"0"})
    assert len(open_source(tmp_path, split)) == 1
    with pytest.raises(ValueError, match=r"no (images|folder)|shards"):
        open_source(tmp_path, "train" if split == "val" else "val")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"1.jpg": b"x"}, "the image 1 has no label"),
        ({"1.cls": b"0"}, "there is no image to 1.cls"),
        ({"1.jpg": b"x", "1.json": b"[]"}, "the image 1 has no label"),
        ({"1.jpg": b"x", "1.cls": b"cat"}, "1.cls holds no label"),
        ({"1.jpg": b"x", "1.png": b"x", "1.cls": b"0"}, "two images 1"),
        ({"1.jpg": b"x", "1.cls": b"-1"}, "label -1, beyond"),
        ({"1.jpg": b"x", "1.cls": b"2"}, r"label 2, beyond the classes 0\.\.1"),
        ({"a.txt": b"x"}, "there is no image"),
    ],
)
def test_shards_that_make_no_sense_are_named(tmp_path: Path, members: dict[str, bytes], message: str):
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    write_tar(tmp_path / "train-0.tar", members)
    with pytest.raises(ValueError, match=f"train-0.tar.*{message}"):
        open_source(tmp_path, "train")


@pytest.mark.parametrize("keep", [100, 700, 2000])
def test_a_truncated_tar_is_named(tmp_path: Path, keep: int):
    path = write_tar(tmp_path / "train-0.tar", {"0.jpg": jpeg(0), "0.cls": b"0", "1.jpg": jpeg(1, 64), "1.cls": b"0"})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"train-0.tar"):
        open_source(tmp_path, "train")


def test_a_compressed_tar_is_refused(tmp_path: Path):
    with tarfile.open(tmp_path / "train-0.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("0.jpg"))
    with pytest.raises(ValueError, match=r"train-0.tar .*uncompressed"):
        open_source(tmp_path, "train")


def test_headers_are_read_once_and_again_when_a_shard_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_tar(tmp_path / "train-0.tar", {"0.jpg": jpeg(0), "0.cls": b"0"})
    read: list[Path] = []
    original = tar_module.index_shard
    monkeypatch.setattr(tar_module, "index_shard", lambda path: read.append(path) or original(path))
    first = read_all(open_source(tmp_path, "train"))
    assert read_all(open_source(tmp_path, "train")) == first
    assert read == [path]
    write_tar(path, {"0.jpg": jpeg(0), "0.cls": b"0", "1.jpg": jpeg(1), "1.cls": b"1"})
    assert [label for _, label in read_all(open_source(tmp_path, "train"))] == [0, 1]
    kept = next((cache_dir() / "tar-index").iterdir())
    kept.write_bytes(kept.read_bytes()[:50])  # a damaged index is made anew
    assert len(open_source(tmp_path, "train")) == 2
    assert read == [path] * 3


# --- ArrayRecord --------------------------------------------------------------------------------------------


def test_a_record_is_the_example_that_tensorflow_writes():
    """Bytes of tf.train.Example({"image": b"ab", "label": 300}).SerializeToString(), by hand from protobuf's rules."""
    image = b"\x0a\x05image" + b"\x12\x06" + b"\x0a\x04" + b"\x0a\x02ab"
    label = b"\x0a\x05label" + b"\x12\x06" + b"\x1a\x04" + b"\x0a\x02\xac\x02"
    pairs = b"".join(b"\x0a" + bytes([len(pair)]) + pair for pair in (image, label))
    expected = b"\x0a" + bytes([len(pairs)]) + pairs
    assert encode_example(b"ab", 300) == expected
    feature = example_class().FromString(expected).features.feature
    assert (feature["image"].bytes_list.value[0], feature["label"].int64_list.value[0]) == (b"ab", 300)


def test_a_folder_of_tfds_opens_as_it_is(tmp_path: Path):
    """Its names of files and of classes, and features that we do not need."""
    example = example_class().FromString(encode_example(jpeg(0), 1))
    example.features.feature["file_name"].bytes_list.value.append(b"n01440764_10026.JPEG")
    for shard in range(2):
        name = f"imagenet2012-validation.array_record-0000{shard}-of-00002"
        write_records(tmp_path / name, [example.SerializeToString()])
    (tmp_path / "label.labels.txt").write_text("tench\ngoldfish\n")
    source = open_source(tmp_path, "val")
    assert read_all(source) == [(jpeg(0), 1)] * 2
    assert source.class_names == ["tench", "goldfish"]
    (tmp_path / "imagenet2012-validation.array_record-00000-of-00002").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 shards are missing .* number 0"):
        open_source(tmp_path, "val")


def test_records_that_make_no_sense_are_named(tmp_path: Path):
    path = write_records(tmp_path / "train.array_record", [encode_example(jpeg(0), 2), b"", b"\xff\xff"])
    with pytest.raises(ValueError, match=r"classes .* not named: write classes.txt"):
        open_source(tmp_path, "train")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    source = open_source(tmp_path, "train")
    with pytest.raises(ValueError, match=r"train.array_record\[0\] has label 2"):
        source[0]
    with pytest.raises(ValueError, match=r"train.array_record\[1\] has the features \[\]"):
        source[1]
    with pytest.raises(UnreadableImageError, match=r"train.array_record\[2\]"):
        source[2]
    path.write_bytes(path.read_bytes()[:66_000])
    with pytest.raises(ValueError, match=r"train.array_record.*get another copy"):
        open_source(tmp_path, "train")
    path.write_bytes(path.read_bytes()[:30_000])
    with pytest.raises(ValueError, match=r"train.array_record"):
        open_source(tmp_path, "train")


def test_a_record_with_damaged_bytes_is_unreadable_and_the_others_are_not(tmp_path: Path):
    (tmp_path / "classes.txt").write_text("cat\n")
    records = [encode_example(jpeg(seed, 200), 0) for seed in range(3)]
    path = tmp_path / "train.array_record"
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for record in records:
        writer.write(record)
    writer.close()
    data = bytearray(path.read_bytes())
    place = data.index(records[1][-200:])
    data[place] ^= 255
    path.write_bytes(data)
    source = open_source(tmp_path, "train")
    with pytest.raises(UnreadableImageError, match=r"unreadable record .*\[1\]"):
        source[1]
    assert source.read(0)[0] == jpeg(0, 200)
    assert source.read(2)[0] == jpeg(2, 200)


@pytest.mark.parametrize("content", ["", "cat\n\ndog\n"])
def test_class_names_with_gaps_are_refused(tmp_path: Path, content: str):
    (tmp_path / "classes.txt").write_text(content)
    write_tar(tmp_path / "train-0.tar", {"0.jpg": jpeg(0), "0.cls": b"0"})
    with pytest.raises(ValueError, match=r"classes.txt has no names, or an empty line"):
        open_source(tmp_path, "train")


def test_the_package_that_records_need_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It is not needed for anything else."""
    write_records(tmp_path / "train-00000-of-00001.array_record", [b"record"])
    monkeypatch.delitem(sys.modules, "t2t_common.data.readers.array_record")
    for name in [name for name in sys.modules if name.startswith("array_record")]:
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pip install array_record protobuf"):
        open_source(tmp_path, "train")
    assert len(open_source("digits", "val")) == 360


# ---- hostile shards ----


@pytest.mark.parametrize("label", [2147483646, 100_000])
def test_a_label_that_would_make_more_classes_than_any_data_has(tmp_path: Path, label: int):
    """Its head would fill the memory."""
    write_tar(tmp_path / "train-0.tar", {"1.jpg": jpeg(1), "1.cls": str(label).encode()})
    source = open_source(tmp_path, "train")
    with pytest.raises(ValueError, match=rf"the data has label {label:,}, .* more than 100,000: correct the label"):
        check_classes(source, source.num_classes)


DEEP = b'{"label": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("1.cls", b"9" * 30, "holds no label"),
        ("1.cls", str(2**32).encode(), "holds no label"),  # in 32 bits it would be label 0
        ("1.json", DEEP, "has no label"),
    ],
)
def test_labels_that_no_model_has(tmp_path: Path, name: str, content: bytes, message: str):
    write_tar(tmp_path / "train-0.tar", {"1.jpg": jpeg(1), name: content})
    with pytest.raises(ValueError, match=f"train-0.tar.*{message}"):
        open_source(tmp_path, "train")


def test_a_size_below_zero_does_not_lead_back_for_ever(tmp_path: Path):
    path = write_tar(tmp_path / "train-0.tar", {"1.txt": b"x" * 2000, "1.jpg": jpeg(1), "1.cls": b"0"})
    data = bytearray(path.read_bytes())
    data[124:136] = b"\xff" * 10 + (2**16 - 1024).to_bytes(2, "big")
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"cannot read .*train-0.tar .*1.txt has -1024 bytes"):
        open_source(tmp_path, "train")


@pytest.mark.parametrize("headers", [{"size": "x"}, {"GNU.sparse.size": "../e"}, {"size": "9" * 30}])
def test_headers_that_are_no_numbers_are_named(tmp_path: Path, headers: dict[str, str]):
    with tarfile.open(tmp_path / "train-0.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("1.jpg")
        member.pax_headers = headers
        tar.addfile(member)
    with pytest.raises(ValueError, match=r"train-0.tar"):
        open_source(tmp_path, "train")


@pytest.mark.parametrize("total", ["9999999999", "9" * 19])
def test_a_name_that_tells_of_billions_of_shards(tmp_path: Path, total: str):
    write_tar(tmp_path / f"train-00000-of-{total}.tar", {"1.jpg": jpeg(1), "1.cls": b"0"})
    with pytest.raises(ValueError, match=f"{int(total) - 1} of {total} shards are missing in .* number 1: get them"):
        open_source(tmp_path, "train")


@pytest.mark.parametrize("damage", ["beyond", "shorter", "empty", "no zip", "npy"])
def test_a_damaged_index_is_made_anew(tmp_path: Path, damage: str):
    write_tar(tmp_path / "data" / "train-0.tar", {"1.jpg": jpeg(1), "1.cls": b"0"})
    whole = read_all(open_source(tmp_path / "data", "train"))
    (kept,) = (cache_dir() / "tar-index").iterdir()
    with np.load(kept) as arrays:
        columns = dict(arrays)
    if damage == "no zip":
        kept.write_bytes(kept.read_bytes()[:-40])
    elif damage == "npy":
        with kept.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        columns["offset"] = {
            "beyond": columns["offset"] + 10**6,
            "shorter": columns["offset"][:0],
            "empty": np.zeros(()),
        }[damage]
        np.savez(kept, **columns)
    assert read_all(open_source(tmp_path / "data", "train")) == whole


def test_a_shard_whose_name_array_record_cannot_take(tmp_path: Path):
    write_records(tmp_path / "train-\n0.array_record", [encode_example(jpeg(1), 0)])
    (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(ValueError, match=r"cannot read the shards in .* rename them"):
        open_source(tmp_path, "train")
