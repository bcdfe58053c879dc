"""Every format of shards gives the examples of the folder that it was made of, whoever prepares them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import t2t_jax.data
import t2t_torch.data
from t2t_common.data import Preprocess, data_identity, fingerprint, open_source
from t2t_common.data.classes import MappedSource, same_classes
from t2t_common.data.fingerprint import data_changes, identify
from t2t_common.data.readers.tf_example import encode_example
from t2t_common.data.readers.write_shards import write_shards
from t2t_common.run.open_data import open_data
from tests.common.data.readers.test_parquet import write_parquet
from tests.common.data.readers.test_shards import read_all, write_tree
from tests.common.data.readers.test_tf_record import write_tfds
from tests.support.small_data import SMALL

HOW = Preprocess.of_recipe(SMALL)
NAMES = ["cat", "dog"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2T_CACHE", str(tmp_path / "cache"))


def written(tree: Path, folder: Path, kind: str) -> Path:
    sources = {split: open_source(tree, split) for split in ("train", "val")}  # type: ignore[arg-type]
    if kind in ("tar", "arrayrecord"):
        write_shards(sources, folder, kind, images_per_shard=4)  # type: ignore[arg-type]
        return folder
    parts = {split: [read_all(source)[:3], read_all(source)[3:]] for split, source in sources.items()}  # type: ignore[arg-type]
    shards = {split: [part for part in found if part] for split, found in parts.items()}
    if kind == "tfrecord":
        records = {split: [[encode_example(*one) for one in part] for part in found] for split, found in shards.items()}
        return write_tfds(folder, records, NAMES)
    for split, found in shards.items():
        for number, part in enumerate(found):
            images, labels = zip(*part, strict=True)
            name = f"{split}-{number:05d}-of-{len(found):05d}.parquet"
            write_parquet(folder / name, list(images), list(labels), NAMES)
    return folder


KINDS = ("tar", "arrayrecord", "tfrecord", "parquet")
Batches = Callable[..., list[dict[str, np.ndarray]]]


def batches_of(package: str) -> Batches:
    iterator = t2t_jax.data.train_iterator if package == "jax" else t2t_torch.data.train_iterator

    def batches(folder: Path, **changes: int) -> list[dict[str, np.ndarray]]:
        processes = {name: changes.pop(name) for name in ("process_index", "process_count") if name in changes}
        recipe = dataclasses.replace(SMALL, **changes)
        found = iterator(open_source(folder, "train"), recipe, HOW, **processes)
        return [{name: np.asarray(value) for name, value in batch.items()} for batch in found]

    return batches


def assert_same(ours: list[dict[str, np.ndarray]], theirs: list[dict[str, np.ndarray]]) -> None:
    assert len(ours) == len(theirs) == 4
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        for name in mine:
            np.testing.assert_array_equal(mine[name], other[name])


@pytest.mark.parametrize("kind", ["tfrecord", "parquet"])
@pytest.mark.parametrize("package", ["jax", "torch"])
def test_shuffled_and_augmented_batches_are_the_same(package: str, kind: str, tmp_path: Path):
    """From one thread, from worker processes, and from two processes that share a batch."""
    tree = write_tree(tmp_path / "tree")
    folder, batches = written(tree, tmp_path / "shards", kind), batches_of(package)
    expected = batches(tree, data_threads=0)
    assert_same(batches(folder, data_threads=2), expected)
    assert_same(batches(folder, data_workers=1), expected)
    halves = [batches(folder, process_index=index, process_count=2) for index in range(2)]
    joined = [{k: np.concatenate([half[k] for half in step]) for k in step[0]} for step in zip(*halves, strict=True)]
    assert_same(joined, expected)


@pytest.mark.parametrize("read", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_is_the_same_data_and_a_change_is_not(
    kind: str, read: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fingerprint, "MOST_BYTES", 1 << 30 if read else 0)
    folder = written(write_tree(tmp_path / "tree"), tmp_path / "shards", kind)

    def known(place: Path) -> fingerprint.Identity:
        return json.loads(json.dumps(data_identity(open_source(place, "train"), open_source(place, "val"))))

    before = known(folder)
    assert known(shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)) == before
    (tmp_path / "tree" / "train" / "cat" / "0.jpg").unlink()
    changes = data_changes(before, known(written(tmp_path / "tree", tmp_path / "other", kind)))
    assert changes.startswith("training images: 7 -> 6")


# --- Classes of training and validation ---------------------------------------------------------------------


def test_validation_has_the_class_numbers_of_training(tmp_path: Path):
    """Whatever order its own shards number the classes in."""
    tree = write_tree(tmp_path / "tree")
    for split, names in (("train", NAMES), ("val", NAMES[::-1])):
        parts = read_all(open_source(tree, split))  # type: ignore[arg-type]
        labels = [names.index(NAMES[label]) for _, label in parts]
        images = [data for data, _ in parts]
        write_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet", images, labels, names)  # type: ignore[arg-type]
    train, raw = (open_source(tmp_path / "data", split) for split in ("train", "val"))  # type: ignore[arg-type]
    data = open_data(dataclasses.replace(SMALL, data=str(tmp_path / "data")))
    assert isinstance(data.val, MappedSource)
    assert data.val.class_names == train.class_names == NAMES
    assert "validation: classes are mapped by name: dog is output 1, cat is output 0" in data.val.notes
    expected = [label for _, label in read_all(open_source(tree, "val"))]  # type: ignore[arg-type]
    assert [data.val[index][1] for index in range(3)] == expected
    assert [raw[index][1] for index in range(3)] == [1 - label for label in expected]
    assert identify(data.val) == identify(raw)


def test_validation_with_other_classes_is_refused(tmp_path: Path):
    for split, names in (("train", ["cat", "dog"]), ("val", ["cat", "emu"])):
        write_parquet(tmp_path / f"{split}-00000-of-00001.parquet", [b"x"], [0], names)
    train, val = (open_source(tmp_path, split) for split in ("train", "val"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"classes that training lacks \(training: cat, dog; validation: cat, emu\)"):
        same_classes(train, val)
    assert same_classes(train, train) is train
    val.class_names = None
    assert same_classes(train, val) is val
