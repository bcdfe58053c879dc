"""The archives of ImageNet-1k (ILSVRC2012) as image-net.org distributes them; nothing is unpacked to the disk.

- `ILSVRC2012_img_train.tar`: a tar file for each class, `n01440764.tar`, with its images. As tar files are not
  compressed, every image has a place in the outer file, where it is read.
- `ILSVRC2012_img_val.tar`, or a folder that it was unpacked to: `ILSVRC2012_val_00000001.JPEG` and so on.
- `ILSVRC2012_devkit_t12.tar.gz`, or the folder that it contains: the labels of the validation images. These are numbers
  of its own, from 1, which `meta.mat` maps to wnids.

The classes are the wnids in the order of the classifier of published weights (see `imagenet_classes`).
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from t2t_common.data.readers.idx_cifar import unpacked
from t2t_common.data.readers.image_files import IMAGE_SUFFIXES
from t2t_common.data.readers.indexed import cached_index
from t2t_common.data.readers.sources import EncodedSource, FolderSource, Split
from t2t_common.data.readers.tar import TarIndex, TarSource, members
from t2t_common.io.mat_file import read_structs
from t2t_config.class_names import imagenet_classes
from t2t_config.text import few, readable, reason

TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12"
TRUTH, META = "data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat"
"""Files of the devkit."""
FLAT = ("val", "validation", "ILSVRC2012_img_val", ".")
"""Folders that are searched for validation images."""
IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
MOST_BYTES = 1 << 22
"""Maximum size of a file of the devkit in bytes; the largest has 150,000."""
INDEX_VERSION = 1


def has_ilsvrc(root: Path) -> bool:
    """Return whether `root` has one of the archives, or the validation images in a folder without class folders."""
    return any((root / name).is_file() for name in (TRAIN, VAL)) or _flat_folder(root) is not None


def open_ilsvrc(root: Path, split: Split) -> EncodedSource | None:
    """Return the images of `split`; None if `root` does not have them in this form.

    Raises:
        ValueError: If an archive is damaged, or the devkit is missing or does not match the images.
    """
    archive = root / (TRAIN if split == "train" else VAL)
    flat = _flat_folder(root) if split == "val" and not archive.is_file() else None
    if archive.is_file():
        return NestedTarSource(archive) if split == "train" else _val_archive(archive)
    return None if flat is None else FlatSource(flat, val_labels(root))


def _flat_folder(root: Path) -> Path | None:
    for folder in (root / name for name in FLAT):
        if folder.is_dir():
            with os.scandir(folder) as entries:
                if any(IMAGE.fullmatch(entry.name) for entry in entries):
                    return folder
    return None


# --- Training images ----------------------------------------------------------------------------------------


class NestedTarSource(TarSource):
    """Training images, in the order of the archive.

    Args:
        archive: Tar file of tar files, one for each class.

    Raises:
        ValueError: If it is damaged or has other members.
    """

    def __init__(self, archive: Path) -> None:
        super().__init__(
            [archive],
            list(imagenet_classes()),
            cached_index(TarIndex, "ilsvrc-index", INDEX_VERSION, [archive], index_train),
        )
        counts = Counter(self.index.label.tolist())
        absent = [wnid for label, wnid in enumerate(imagenet_classes()) if label not in counts]
        self.notes = [f"{archive} has no images of {len(absent)} classes: {few(absent, 10)}"] if absent else []

    def name(self, index: int) -> str:
        offset = self.index.offset[index]
        names = (f"{wnid}.tar/{member.name}" for wnid, member in _inner(self.shards[0]) if member.offset_data == offset)
        return f"{self.shards[0]}/{readable(next(names, '?'), 300)}"


def index_train(archive: Path) -> list[tuple[int, int, int]]:
    """Return (offset, size, label) of every training image, in order; raise ValueError if the archive is damaged."""
    label_of = {wnid: label for label, wnid in enumerate(imagenet_classes())}
    found = [(member.offset_data, member.size, label_of[wnid]) for wnid, member in _inner(archive)]
    if not found:
        raise ValueError(f"{archive} has no images: get another copy")
    return found


def _inner(archive: Path) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Yield wnid and member of every image in the tar files of the archive."""
    known, size = imagenet_classes(), archive.stat().st_size
    for _, outer in members(archive):
        wnid = outer.name.rpartition("/")[2].removesuffix(".tar")
        if not outer.isreg():
            continue
        if wnid not in known or not outer.name.endswith(".tar"):
            raise ValueError(f"{archive} has {readable(outer.name)}: expected a tar file for each class, n01440764.tar")
        end = outer.offset_data + outer.size
        if end > size:
            raise ValueError(f"{archive} is truncated within {readable(outer.name)}: get another copy")
        for _, member in members(archive, outer.offset_data, end):
            if not member.isreg() or not member.name.lower().endswith(IMAGE_SUFFIXES):
                continue
            if member.offset_data + member.size > end:
                raise ValueError(f"{archive} is damaged: {readable(member.name)} exceeds {wnid}.tar: get another copy")
            yield wnid, member


# --- Validation images --------------------------------------------------------------------------------------


def _val_archive(archive: Path) -> TarSource:
    labels = val_labels(archive.parent)
    return TarSource([archive], list(imagenet_classes()), _val_index(archive, labels))


def _val_index(archive: Path, labels: np.ndarray) -> TarIndex:
    """Return the index of the validation archive; not cached, as the labels are in another file."""
    places: dict[int, tuple[int, int]] = {}
    end = archive.stat().st_size
    for _, member in members(archive):
        number = _number(member.name.rpartition("/")[2], archive, len(labels)) if member.isreg() else None
        if number is None:
            continue
        if number in places or member.offset_data + member.size > end:
            raise ValueError(f"{archive} is damaged at {readable(member.name)}: get another copy")
        places[number] = member.offset_data, member.size
    _check_count(archive, len(places), labels)
    numbers = np.array(list(places))
    offset, size = np.array(list(places.values()), np.int64).T
    return TarIndex(np.zeros(len(numbers), np.int32), offset, size, labels[numbers - 1])


class FlatSource(FolderSource):
    """Validation images in one folder, in the order of their numbers.

    Args:
        folder: Folder of the images.
        labels: Label of each image, by its number - 1.

    Raises:
        ValueError: If an image is missing, or has a number without a label.
    """

    def __init__(self, folder: Path, labels: np.ndarray) -> None:
        self._root, self.class_names = folder, list(imagenet_classes())
        self.num_classes = len(self.class_names)
        self.skipped, self.empty, self.absent = Counter(), [], []
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if IMAGE.fullmatch(entry.name) and entry.is_file())
        numbers = [_number(name, folder, len(labels)) or 0 for name in names]
        _check_count(folder, len(names), labels)
        self._files = [(folder / name, int(labels[number - 1])) for name, number in zip(names, numbers, strict=True)]

    def relative_path(self, index: int) -> Path:
        """Return CLASS/NAME.JPEG, as in a tree, so that a label that was changed changes the identity of the data."""
        path, label = self._files[index]
        return Path(list(imagenet_classes())[label], path.name)


def _number(name: str, place: Path, count: int) -> int | None:
    """Return the number of a validation image; None for other files."""
    found = IMAGE.fullmatch(name)
    if found and not 1 <= int(found[1]) <= count:
        raise ValueError(f"{place} has {name}, and the devkit labels for {count:,} images: get both again")
    return int(found[1]) if found else None


def _check_count(place: Path, count: int, labels: np.ndarray) -> None:
    if count != len(labels):
        raise ValueError(f"{place} has {count:,} images, and the devkit labels for {len(labels):,}: get both again")


# --- Devkit -------------------------------------------------------------------------------------------------


def val_labels(root: Path) -> np.ndarray:
    """Return the labels of the validation images by their numbers - 1: int64 (N,), indices in `imagenet_classes`.

    Raises:
        ValueError: If there is no devkit in `root` or its parent, or it is damaged.
    """
    place, files = _devkit(root)
    label_of = {wnid: label for label, wnid in enumerate(imagenet_classes())}
    try:
        synsets = read_structs(files[META], "synsets")
        wnids = {int(synset["ILSVRC2012_ID"] or 0): str(synset["WNID"]) for synset in synsets}
        ids = [int(line) for line in files[TRUTH].split()]
        return np.array([label_of[wnids[number]] for number in ids], np.int64)
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        what = f"no class has the number or wnid {error}" if isinstance(error, KeyError) else reason(error)
        raise ValueError(f"cannot read {place} ({what}): get another copy") from error


def _devkit(root: Path) -> tuple[Path, dict[str, bytes]]:
    """Return the place of the devkit and the content of its files."""
    for folder in (root, root.parent):
        for place in (folder / DEVKIT, folder):
            if all((place / name).is_file() for name in (TRUTH, META)):
                for name in (TRUTH, META):
                    _check_size(place, name, (place / name).stat().st_size)
                return place, {name: (place / name).read_bytes() for name in (TRUTH, META)}
        for place in (folder / f"{DEVKIT}.tar.gz", folder / f"{DEVKIT}.tar"):
            if place.is_file():
                return place, _from_archive(place)
    raise ValueError(f"no labels for the validation images in {root}: put {DEVKIT}.tar.gz into it, from image-net.org")


def _from_archive(path: Path) -> dict[str, bytes]:
    data = path.read_bytes()
    data = unpacked(path, data) if data[:2] == b"\x1f\x8b" else data
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                name = next((name for name in (TRUTH, META) if member.name.endswith(f"/{name}")), None)
                if name is not None and member.isreg():
                    _check_size(path, name, member.size)
                    stored = tar.extractfile(member)
                    found[name] = stored.read() if stored else b""
    except Exception as error:  # damaged headers raise almost any error
        raise ValueError(f"cannot read {path} ({reason(error)}): get another copy") from error
    if len(found) < 2:
        raise ValueError(f"{path} lacks {few(name for name in (TRUTH, META) if name not in found)}: get another copy")
    return found


def _check_size(place: Path, name: str, size: int) -> None:
    if size > MOST_BYTES:
        raise ValueError(f"{place} has a {name} of {size:,} bytes, more than {MOST_BYTES:,}: get another copy")
