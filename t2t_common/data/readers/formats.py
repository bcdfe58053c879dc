"""Which kind of data a folder holds, and its source."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from t2t_common.data.folders import has_images, open_image_folder, split_folder
from t2t_common.data.readers.idx_cifar import CIFAR_TESTS, idx_folder, read_cifar, read_idx_pair
from t2t_common.data.readers.image_files import folders_in
from t2t_common.data.readers.shards import RECORDS, find_shards, read_class_names, row_notes
from t2t_common.data.readers.sources import ArraySource, Source, Split
from t2t_common.data.readers.tar import TARS, TarSource
from t2t_config import ExpectedClasses, Recipe

HELD_OUT_PER_DIGIT = 36
DEEPEST = 3
"""Folders, each the only one in the last, that are looked through for the data."""

MOST_CLASSES = 100_000
"""Of any data set; ImageNet-21k has 21,841. A label beyond is a mistake, and its head would fill the memory."""


def open_source(data: str | Path, split: Split, num_classes: int | None = None) -> Source:
    """The images of `split` in `data`, whose kind shows in what the folder contains.

    Args:
        data: "digits", or a folder with ImageFolder trees `train/CLASS/*.jpg` and `val/CLASS/*.jpg` (see folders.py;
            the second may be called validation or test too), with tar shards in WebDataset's layout (see tar.py) or
            ArrayRecord shards (see records.py), with the IDX files of the MNIST family (also gzipped), or with the
            binary version of CIFAR-10 or CIFAR-100. For "val" a folder of class folders will do. A folder that holds
            nothing but one such folder stands for it.
        split: "train" or "val" (the test images of digits, IDX and CIFAR).
        num_classes: of CIFAR-10 and CIFAR-100 side by side, the one with so many is taken.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: nothing to read in it, both CIFARs and nothing that tells which, or a damaged file; the message
            names it.
    """
    source = _open_source(data, split, num_classes)
    if not len(source):
        kind = "training" if split == "train" else "validation"
        raise ValueError(f"{data} has no {kind} images: a file for them is there, but empty")
    return source


def _open_source(data: str | Path, split: Split, num_classes: int | None) -> Source:
    if str(data) == "digits":
        return _digits(split)
    given = Path(data)
    if not given.is_dir():
        raise FileNotFoundError(f'no data folder {given}: check the path, or use "digits"')
    root = _root_of(given)
    source = _open_root(root, split, num_classes)
    if root != given:
        note = f"taking {root} for the data: {given} holds nothing else"
        source.notes = [note, *getattr(source, "notes", ())]  # type: ignore[attr-defined]
    return source


def _open_root(root: Path, split: Split, num_classes: int | None) -> Source:
    if idx_folder(root) is not None:
        return ArraySource(*read_idx_pair(root, split))
    if (cifar := _find_cifar(root, num_classes)) is not None:
        return ArraySource(*read_cifar(*cifar, split))
    if tars := find_shards(root, split, TARS):
        source = TarSource(tars, read_class_names(root))
        source.notes = row_notes(tars)
        return source
    if records := find_shards(root, split, RECORDS):
        return _array_records(records, root)
    return open_image_folder(root, split)


def _cifar_folders(root: Path) -> dict[Literal[10, 100], Path]:
    """The CIFARs in `root` or its folders `cifar-*`, by their number of classes."""
    found: dict[Literal[10, 100], Path] = {}
    for folder in (root, *sorted(root.glob("cifar-*"))):
        for classes, name in CIFAR_TESTS.items():
            if (folder / name).is_file():
                found.setdefault(classes, folder)
    return found


def _root_of(given: Path) -> Path:
    """`given`, or where it holds no data but one folder with data: that folder, or one in it."""
    root = given
    for _ in range(DEEPEST):
        if _is_root(root):
            return root
        inner = [root / name for name in sorted(folders_in(root))]
        data = [folder for folder in inner if _is_root(folder)]
        if len(data) == 1 and not any(map(has_images, inner)):
            return data[0]
        if len(inner) != 1:
            break
        (root,) = inner
    return given


def _is_root(folder: Path) -> bool:
    """Whether `folder` itself holds splits, shards or arrays."""
    splits: tuple[Split, Split] = ("train", "val")
    return (
        any(split_folder(folder, split) for split in splits)
        or idx_folder(folder) is not None
        or bool(_cifar_folders(folder))
        or any(find_shards(folder, split, pattern, check=False) for split in splits for pattern in (TARS, RECORDS))
    )


def head_classes(recipe: Recipe, *sources: Source) -> int:
    """Classes of the head: as many as the data have, unless `num_classes` was set to a number."""
    if recipe.num_classes is None or isinstance(recipe.num_classes, ExpectedClasses):
        return max(source.num_classes for source in sources)
    return recipe.num_classes


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


def _find_cifar(root: Path, num_classes: int | None) -> tuple[Path, Literal[10, 100]] | None:
    """The folder of a CIFAR in `root` or below, and which it is; None without one."""
    found = _cifar_folders(root)
    if len(found) > 1:
        found = {classes: folder for classes, folder in found.items() if classes == num_classes}
        if not found:
            raise ValueError(f"{root} holds CIFAR-10 and CIFAR-100: set --num-classes 10 or 100, or name one's folder")
    return next(((folder, classes) for classes, folder in found.items()), None)


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
        from t2t_common.data.readers.array_record import ArrayRecordSource
    except ModuleNotFoundError as error:
        raise ValueError(f"ArrayRecord shards need a package ({error}): pip install array_record protobuf") from error
    return ArrayRecordSource(shards, read_class_names(root))
