"""Detection of the data format of a folder, and creation of its source."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from t2t_common.data.folders import has_images, open_image_folder, split_folder
from t2t_common.data.readers.idx_cifar import CIFAR_TESTS, has_cifar, idx_folder, read_cifar, read_idx_pair
from t2t_common.data.readers.ilsvrc import has_ilsvrc, open_ilsvrc
from t2t_common.data.readers.image_files import folders_in
from t2t_common.data.readers.shards import find_shards, read_class_names, row_notes
from t2t_common.data.readers.sources import ArraySource, EncodedSource, Source, Split
from t2t_common.data.readers.tar import TARS, TarSource
from t2t_config import ExpectedClasses, Recipe

HELD_OUT_PER_DIGIT = 36
SPLITS: tuple[Split, Split] = ("train", "val")
DEEPEST = 3
"""Maximum depth of nested folders, each the only one in its parent, that are searched for the data."""

MOST_CLASSES = 100_000
"""Maximum number of classes; ImageNet-21k has 21,841. A larger label is a mistake; its head would exhaust the
memory."""


def open_source(
    data: str | Path, split: Split, num_classes: int | None = None, val_fraction: float | None = None
) -> Source:
    """Open the images of `split` in `data`; the format is detected from the folder's content.

    Args:
        data: "digits", or a folder with ImageFolder trees `train/CLASS/*.jpg` and `val/CLASS/*.jpg` (see folders.py;
            the second may also be called validation or test), with shards in one of these formats (tar.py,
            array_record.py, tf_record.py, parquet.py), with the archives of ILSVRC2012 (see ilsvrc.py), with the IDX
            files of the MNIST family (optionally gzipped), or with CIFAR-10 or CIFAR-100 in the binary or the Python
            version. For "val", a folder of class folders is accepted too. If a folder contains nothing but one such
            folder, the inner one is used.
        split: "train" or "val" (the test images of digits, IDX and CIFAR).
        num_classes: Number of classes that selects between CIFAR-10 and CIFAR-100 if both are present.
        val_fraction: Fraction of the images of a folder of class folders to hold out for validation (see folders.py);
            None if the data are split.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If it contains no known data, or both CIFARs without a way to choose, or a damaged file; the message
            names it. If `val_fraction` is given for data that have validation images.
    """
    source = _open_source(data, split, num_classes, val_fraction)
    if not len(source):
        kind = "training" if split == "train" else "validation"
        raise ValueError(f"{data} has no {kind} images: a file for them is there, but empty")
    return source


def _open_source(data: str | Path, split: Split, num_classes: int | None, val_fraction: float | None) -> Source:
    if str(data) == "digits":
        _check_unsplit(data, val_fraction)
        return _digits(split)
    given = Path(data)
    if not given.is_dir():
        raise FileNotFoundError(f'no data folder {given}: check the path, or use "digits"')
    root = _root_of(given)
    source = _open_files(root, split, num_classes)
    if source is None:
        source = open_image_folder(root, split, val_fraction)
    else:
        _check_unsplit(root, val_fraction)
    if root != given:
        note = f"using {root} as the data: {given} contains nothing else"
        source.notes = [note, *getattr(source, "notes", ())]  # type: ignore[attr-defined]
    return source


def _open_files(root: Path, split: Split, num_classes: int | None) -> Source | None:
    """Open the data of `split` in `root`, in the first of FORMATS that it has; None if it has none."""
    found = (data_format.open(root, split, num_classes) for data_format in FORMATS)
    return next((source for source in found if source is not None), None)


def _check_unsplit(data: str | Path, val_fraction: float | None) -> None:
    if val_fraction is not None:
        raise ValueError(f"--val-fraction splits a folder of class folders, and {data} is not one: leave it out")


def is_unsplit(data: str | Path) -> bool:
    """Return whether `data` is a folder of class folders without validation images, which --val-fraction can split."""
    if str(data) == "digits" or not Path(data).is_dir():
        return False
    root = _root_of(Path(data))
    return split_folder(root, "val") is None and not _has_files(root)


def _cifar_folders(root: Path) -> dict[Literal[10, 100], Path]:
    """Return the CIFAR folders among `root` and its folders `cifar-*`, by number of classes."""
    found: dict[Literal[10, 100], Path] = {}
    for folder in (root, *sorted(root.glob("cifar-*"))):
        for classes in CIFAR_TESTS:
            if has_cifar(folder, classes):
                found.setdefault(classes, folder)
    return found


def _root_of(given: Path) -> Path:
    """Return `given`, or the only data folder nested in it if `given` itself contains no data."""
    root = given
    for _ in range(DEEPEST):
        if _is_root(root):
            return root
        inner = [root / name for name in sorted(folders_in(root))]
        if not any(map(has_images, inner)):  # otherwise there may be a thousand classes, not to be searched
            data = [folder for folder in inner if _is_root(folder)]
            if len(data) == 1:
                return data[0]
        if len(inner) != 1:
            break
        (root,) = inner
    return given


def _is_root(folder: Path) -> bool:
    """Return whether `folder` directly contains data in one of FORMATS, or split folders."""
    return any(split_folder(folder, split) for split in SPLITS) or _has_files(folder)


def _has_files(folder: Path) -> bool:
    return any(data_format.is_in(folder) for data_format in FORMATS)


def head_classes(recipe: Recipe, *sources: Source) -> int:
    """Return the number of classes of the head: that of the data, unless `num_classes` was set explicitly."""
    if recipe.num_classes is None or isinstance(recipe.num_classes, ExpectedClasses):
        return max(source.num_classes for source in sources)
    return recipe.num_classes


def check_classes(source: Source, num_classes: int) -> None:
    """Raise ValueError if `source` has labels beyond a head of `num_classes`, or more than MOST_CLASSES classes."""
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
    """Return the folder of a CIFAR data set in or below `root` and its number of classes; None if there is none."""
    found = _cifar_folders(root)
    if len(found) > 1:
        found = {classes: folder for classes, folder in found.items() if classes == num_classes}
        if not found:
            raise ValueError(f"{root} holds CIFAR-10 and CIFAR-100: set --num-classes 10 or 100, or name one's folder")
    return next(((folder, classes) for classes, folder in found.items()), None)


def _open_idx(root: Path, split: Split, num_classes: int | None) -> Source | None:
    return ArraySource(*read_idx_pair(root, split)) if idx_folder(root) is not None else None


def _open_cifar(root: Path, split: Split, num_classes: int | None) -> Source | None:
    cifar = _find_cifar(root, num_classes)
    return None if cifar is None else ArraySource(*read_cifar(*cifar, split))


class DataFormat(NamedTuple):
    """A storage format of the data in a folder."""

    is_in: Callable[[Path], bool]
    """(folder) -> whether it directly contains data in this format, complete or not."""
    open: Callable[[Path, Split, int | None], Source | None]
    """(folder, split, num_classes) -> source; None if the folder has no data of this split in this format."""


def _shards(pattern: str, open_shards: Callable[[list[Path], Path], EncodedSource]) -> DataFormat:
    """Return a format of shards, given the pattern of their names and a function (shards, folder) -> source."""

    def is_in(folder: Path) -> bool:
        return any(find_shards(folder, split, pattern, check=False) for split in SPLITS)

    def open_split(root: Path, split: Split, num_classes: int | None) -> Source | None:
        shards = find_shards(root, split, pattern)
        if not shards:
            return None
        source = open_shards(shards, root)
        source.notes = [*source.notes, *row_notes(shards)]
        return source

    return DataFormat(is_in, open_split)


def _optional(reader: str, source: str, packages: str) -> Callable[[list[Path], Path], EncodedSource]:
    """Return a function that opens shards with a reader whose packages are imported only now, as they are optional."""

    def open_shards(shards: list[Path], root: Path) -> EncodedSource:
        try:
            module = importlib.import_module(f"t2t_common.data.readers.{reader}")
        except ModuleNotFoundError as error:
            raise ValueError(f"{shards[0].name} needs a package ({error}): pip install {packages}") from error
        opened: EncodedSource = getattr(module, source)(shards, read_class_names(root))
        return opened

    return open_shards


FORMATS = (
    DataFormat(has_ilsvrc, lambda root, split, num_classes: open_ilsvrc(root, split)),
    DataFormat(lambda folder: idx_folder(folder) is not None, _open_idx),
    DataFormat(lambda folder: bool(_cifar_folders(folder)), _open_cifar),
    _shards(TARS, lambda shards, root: TarSource(shards, read_class_names(root))),
    _shards("*array_record*", _optional("array_record", "ArrayRecordSource", "array_record protobuf")),
    _shards("*tfrecord*", _optional("tf_record", "TfRecordSource", "protobuf")),
    _shards("*.parquet", _optional("parquet", "ParquetSource", "pyarrow")),
)
"""The formats, in the order in which they are tried; a folder with none of them is opened as an ImageFolder tree.
Shards are found by the patterns of their names, as in `train-000000.tar`, `train-00000-of-00010.array_record` or TFDS's
`NAME-train.tfrecord-00000-of-00010`. To add a format, write a reader in this folder and add it here."""


def _digits(split: Split) -> ArraySource:
    """Load scikit-learn's handwritten digits, (8, 8) with 17 gray levels; the same 36 images of each digit are held
    out."""
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
