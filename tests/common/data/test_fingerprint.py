"""Data are the same where nothing but their place and times differ; whatever else changes is named."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from t2t_common.data import data_identity, fingerprint, open_source, with_token_labels
from t2t_common.data.fingerprint import data_changes
from t2t_common.data.readers.write_shards import Format, write_shards
from tests.common.data.readers.test_shards import write_tree
from tests.support.small_data import write_idx_folder
from tests.support.token_labels import LABELLED, write_labelled_folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2T_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=["contents are read", "contents are too much"])
def contents(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    read = request.param == "contents are read"
    if not read:
        monkeypatch.setattr(fingerprint, "MOST_BYTES", 0)
    return read


def known(folder: Path) -> fingerprint.Identity:
    """As a checkpoint gives it back."""
    return json.loads(json.dumps(data_identity(open_source(folder, "train"), open_source(folder, "val"))))


def overwrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Changes a file in place; its size and the time of its last change stay."""
    before = path.stat()
    content = change(path.read_bytes())
    assert len(content) == before.st_size
    with path.open("rb+") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def shards(tree: Path, folder: Path, kind: Format) -> Path:
    sources = {split: open_source(tree, split) for split in ("train", "val")}
    write_shards(sources, folder, kind, images_per_shard=4)
    return folder


# --- The same -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tree", "tar", "arrayrecord", "idx"])
def test_a_copy_is_the_same_data(kind: str, contents: bool, tmp_path: Path):
    tree = write_tree(tmp_path / "tree")
    folder = {"tree": lambda: tree, "idx": lambda: write_idx_folder(tmp_path / "idx")}.get(
        kind,
        lambda: shards(tree, tmp_path / "shards", kind),  # type: ignore[arg-type]
    )()
    before = known(folder)
    copy = shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
    assert known(copy) == before
    assert data_changes(before, known(copy)) == ""
    assert before["train"]["compared"] == "contents" or not contents


def test_an_identity_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tree = write_tree(tmp_path)
    monkeypatch.setattr(fingerprint, "MOST_PARTS", 1)
    before = known(tree)
    assert list(before["train"]["parts"]) == ["all"]
    (tree / "train" / "cat" / "0.jpg").rename(tree / "train" / "cat" / "new.jpg")
    assert data_changes(before, known(tree)) == "training images: not the same, or in another order"


# --- Folders ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda tree: shutil.copy(tree / "train/cat/0.jpg", tree / "train/cat/9.jpg"),
            "training images: 7 -> 8, cat 4 -> 5",
        ),
        (lambda tree: (tree / "val/dog/1.jpg").unlink(), "validation images: 3 -> 2, removed dog"),
        (
            lambda tree: [(tree / f"train/{name}").unlink() for name in ("cat/0.jpg", "cat/2.jpg", "dog/1.jpg")],
            "training images: 7 -> 4, cat 4 -> 2, dog 3 -> 2",
        ),
        (
            lambda tree: (tree / "train/cat/0.jpg").rename(tree / "train/cat/00.jpg"),
            "training images: changed cat",
        ),
        (
            lambda tree: (tree / "train/dog/1.jpg").write_bytes((tree / "train/dog/1.jpg").read_bytes() + b"\0"),
            "training images: changed dog",
        ),
        (
            lambda tree: [(tree / split / "cat").rename(tree / split / "kitten") for split in ("train", "val")],
            "training images: removed cat, new kitten; validation images: removed cat, new kitten",
        ),
    ],
)
def test_changes_of_a_tree_are_named(change: Callable[[Path], object], text: str, contents: bool, tmp_path: Path):
    before = known(write_tree(tmp_path))
    change(tmp_path)
    assert data_changes(before, known(tmp_path)) == text
    assert before["train"]["compared"] == ("contents" if contents else "names and sizes")


def test_an_image_edited_in_place_is_seen_where_contents_are_read(tmp_path: Path):
    before = known(write_tree(tmp_path))
    overwrite(tmp_path / "train/cat/0.jpg", lambda data: data[:-4] + b"\0\0\0\0")
    assert data_changes(before, known(tmp_path)) == "training images: changed cat"


def test_a_tree_turned_into_shards_is_other_data(tmp_path: Path):
    before = known(write_tree(tmp_path / "tree"))
    changes = data_changes(before, known(shards(tmp_path / "tree", tmp_path / "shards", "tar")))
    assert changes.startswith("training images: an ImageFolder tree -> tar shards; validation")


# --- Shards -------------------------------------------------------------------------------------------------


def test_labels_of_a_tar_edited_in_place_are_seen(contents: bool, tmp_path: Path):
    """Size and time of the shard stay, and the index that was kept is not used any more."""
    folder = shards(write_tree(tmp_path / "tree"), tmp_path / "shards", "tar")
    before = known(folder)
    path = folder / "train-000000.tar"
    index = open_source(folder, "train").index  # type: ignore[attr-defined]
    place = int(index.offset[0] + -(-int(index.size[0]) // 512) * 512 + 512)  # what follows is the header of its .cls

    def other_label(data: bytes) -> bytes:
        assert data[place : place + 1] == str(index.label[0]).encode()
        return data[:place] + str(1 - int(index.label[0])).encode() + data[place + 1 :]

    overwrite(path, other_label)
    assert open_source(folder, "train").index.label[0] == 1 - index.label[0]  # type: ignore[attr-defined]
    assert data_changes(before, known(folder)) == "training images: changed train-000000.tar"


@pytest.mark.parametrize("kind", ["tar", "arrayrecord"])
def test_pixels_of_a_shard_edited_in_place_are_seen_where_contents_are_read(kind: Format, tmp_path: Path):
    folder = shards(write_tree(tmp_path / "tree"), tmp_path / "shards", kind)
    before = known(folder)
    path = sorted(folder.glob("train-*"))[-1]
    middle = path.stat().st_size // 3
    overwrite(path, lambda data: data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    assert data_changes(before, known(folder)) == f"training images: changed {path.name}"


def test_a_missing_shard_is_named(contents: bool, tmp_path: Path):
    folder = shards(write_tree(tmp_path / "tree"), tmp_path / "shards", "tar")
    before = known(folder)
    (folder / "train-000001.tar").unlink()
    assert data_changes(before, known(folder)) == "training images: 7 -> 4, removed train-000001.tar"


def test_arrays_are_compared_by_their_numbers(tmp_path: Path):
    before = known(write_idx_folder(tmp_path))
    labels = tmp_path / "train-labels-idx1-ubyte"
    overwrite(labels, lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    assert data_changes(before, known(tmp_path)) == "training images: not the same, or in another order"


# --- Label maps ---------------------------------------------------------------------------------------------


def test_a_label_map_edited_in_place_is_seen(contents: bool, tmp_path: Path):
    """All label maps have one size."""
    data, labels = write_labelled_folder(tmp_path)
    recipe = dataclasses.replace(LABELLED, data=str(data), token_labels=str(labels))

    def labelled() -> fingerprint.Identity:
        return data_identity(with_token_labels(open_source(data, "train"), recipe), open_source(data, "val"))

    before, path = labelled(), labels / "class1" / "01.pt"
    assert data_changes(before, labelled()) == ""

    def saved(label_map: torch.Tensor) -> bytes:
        content = io.BytesIO()
        torch.save(label_map, content)
        return content.getvalue()

    path.write_bytes(saved(torch.load(path)))  # under the name that a buffer gives it
    before = labelled()
    other = torch.load(path)
    other[1] = 3
    overwrite(path, lambda data: saved(other))
    assert data_changes(before, labelled()) == "label maps: changed class1"
    path.unlink()
    with pytest.raises(ValueError, match=r"cannot read .*class1/01.pt \(No such file.*make it, or check --token"):
        labelled()


# --- What a file may hold -----------------------------------------------------------------------------------


@pytest.mark.parametrize("damaged", [7, [], {"train": 1}, {"train": {"parts": 3}}, {"train": {"parts": {"a": 1}}}])
def test_an_identity_that_makes_no_sense_is_other_data(damaged: object, tmp_path: Path):
    assert data_changes(damaged, known(write_tree(tmp_path))).startswith("training images: none -> some")


def test_images_of_a_kind_of_their_own_are_counted():
    class Mine:
        num_classes, class_names = 2, None

        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return Image.fromarray(np.zeros((4, 4), np.uint8)), 0

    assert fingerprint.identify(Mine())["images"] == 5
