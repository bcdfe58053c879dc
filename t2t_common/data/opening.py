"""Which kind of data a folder holds, and its source."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from t2t_common.data.binary import read_cifar, read_idx_pair
from t2t_common.data.shards import RECORDS, find_shards, read_class_names
from t2t_common.data.sources import ArraySource, FolderSource, Source, Split
from t2t_common.data.tar import TARS, TarSource

HELD_OUT_PER_DIGIT = 36

MOST_CLASSES = 100_000
"""Of any data set; ImageNet-21k has 21,841. A label beyond is a mistake, and its head would fill the memory."""


def open_source(data: str | Path, split: Split) -> Source:
    """The images of `split` in `data`, whose kind shows in what the folder contains.

    Args:
        data: "digits", or a folder with ImageFolder trees `train/CLASS/*.jpg` and `val/CLASS/*.jpg`, with tar shards
            in WebDataset's layout (see tar.py) or ArrayRecord shards (see records.py), with the IDX files of the
            MNIST family (also gzipped), or with the binary version of CIFAR-10 or CIFAR-100. For "val" a folder
            of class folders will do.
        split: "train" or "val" (the test images of digits, IDX and CIFAR).

    Raises:
        FileNotFoundError: no such folder.
        ValueError: nothing to read in it, or a damaged file; the message names it.
    """
    source = _open_source(data, split)
    if not len(source):
        kind = "training" if split == "train" else "validation"
        raise ValueError(f"{data} has no {kind} images: a file for them is there, but empty")
    return source


def _open_source(data: str | Path, split: Split) -> Source:
    if str(data) == "digits":
        return _digits(split)
    root = Path(data)
    if not root.is_dir():
        raise FileNotFoundError(f'no data folder {root}: check the path, or use "digits"')
    if any(root.glob("*images*idx3*")):
        return ArraySource(*read_idx_pair(root, split))
    for folder in (root, *sorted(root.glob("cifar-*"))):
        if (folder / "test_batch.bin").is_file() or (folder / "test.bin").is_file():
            return ArraySource(*read_cifar(folder, split))
    if tars := find_shards(root, split, TARS):
        return TarSource(tars, read_class_names(root))
    if records := find_shards(root, split, RECORDS):
        return _array_records(records, root)
    return _image_folder(root, split)


def check_classes(source: Source, num_classes: int) -> None:
    """Raises ValueError if `source` has labels that a head of `num_classes` lacks, or more than any data set."""
    if source.num_classes > MOST_CLASSES:
        raise ValueError(
            f"the data has label {source.num_classes - 1:,}, which would make it {source.num_classes:,} classes, more "
            f"than {MOST_CLASSES:,}: correct the label"
        )
    if source.num_classes > num_classes:
        raise ValueError(
            f"the data has {source.num_classes} classes, the model {num_classes}: set --num-classes "
            f"{source.num_classes}"
        )


def _digits(split: Split) -> ArraySource:
    """scikit-learn's handwritten digits, (8, 8) with 17 grays; always the same 36 of each digit are held out."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ValueError(f"the digits come with scikit-learn ({error}): pip install scikit-learn") from error
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    shuffled = np.random.RandomState(0).permutation(len(images))
    held_out = np.concatenate([shuffled[digits.target[shuffled] == digit][:HELD_OUT_PER_DIGIT] for digit in range(10)])
    chosen = np.isin(np.arange(len(images)), held_out, invert=split == "train")
    return ArraySource(images[chosen], digits.target[chosen].astype(np.int32), 10, list("0123456789"))


def _array_records(shards: list[Path], root: Path) -> Source:
    try:
        from t2t_common.data.records import ArrayRecordSource
    except ModuleNotFoundError as error:
        raise ValueError(f"ArrayRecord shards need a package ({error}): pip install array_record protobuf") from error
    return ArrayRecordSource(shards, read_class_names(root))


def _image_folder(root: Path, split: Split) -> FolderSource:
    folder = root / split
    if not folder.is_dir():
        if split == "train" or (root / "train").is_dir():
            raise ValueError(
                f"no folder {folder}: expected train/CLASS/*.jpg and val/CLASS/*.jpg (or .png), tar or ArrayRecord "
                f"shards ({split}-*.tar, {split}-*.array_record), IDX files or CIFAR binary files"
            )
        folder = root
    classes = _class_names(root / "train" if (root / "train").is_dir() else folder)
    strangers = [name for name in _class_names(folder) if name not in set(classes)]
    if strangers:
        raise ValueError(f"{folder} has classes that {root / 'train'} lacks: {', '.join(strangers[:5])}")
    return FolderSource(folder, classes)


def _class_names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
