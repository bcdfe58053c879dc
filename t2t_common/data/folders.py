"""Trees of class folders, as used with torchvision and timm: locating them and numbering their classes."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from t2t_common.data.readers.image_files import IMAGE_SUFFIXES, as_text, folders_in, is_system_file
from t2t_common.data.readers.shards import SPLIT_WORDS, class_file, read_class_names
from t2t_common.data.readers.sources import FolderSource, Split, in_words
from t2t_config.class_names import both_lists
from t2t_config.text import escaped, few

SHOWN = 10
"""Maximum number of class folders listed in a message."""


def natural_key(name: str) -> tuple[list[int | str], str]:
    """Return a sort key that compares numbers in names by value and ignores case, as in timm: "2" before "10"."""
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


def split_folder(root: Path, split: Split) -> Path | None:
    """Return the folder of `split` in `root`, by the first of its names that exists, in any case, or None.

    A folder with this name that contains images is a class (of trains, for instance), not a split.
    """
    names = sorted(folders_in(root))
    for word in SPLIT_WORDS[split]:
        for name in names:
            if name.lower() == word and folders_in(root / name):
                return root / name
    return None


def open_image_folder(root: Path, split: Split, val_fraction: float | None = None) -> FolderSource:
    """Open the images of `split` in `root`: a tree of split folders, or for "val" class folders alone.

    Classes are numbered in the order of `classes.txt` if it exists, else in natural order. Validation uses the class
    numbers of training.

    Args:
        root: Folder of the data.
        split: "train" or "val".
        val_fraction: Fraction of the images that `is_held_out` assigns to validation, if `root` has class folders, or
            training images alone; None if it is split.

    Raises:
        ValueError: If the folders do not exist, validation has classes that training lacks, or names do not match; or
            if there is something to split that is split already, or nothing remains.
    """
    train, folder = split_folder(root, "train"), split_folder(root, split)
    notes = []
    if val_fraction is not None:
        if (own := split_folder(root, "val")) is not None:
            raise ValueError(f"{own} are validation images already: leave out --val-fraction")
        folder = train
    if folder is None:
        if val_fraction is None and (split == "train" or train is not None):
            raise ValueError(_no_split(root, split))
        folder = root
        inner = folders_in(root)
        if len(inner) == 1 and not has_images(root / inner[0]) and folders_in(root / inner[0]):
            folder = root / inner[0]  # a single folder of folders is not a class
            notes.append(f"using {folder} as the data: it is the only folder in {root}")
    elif val_fraction is None and folder.name.lower() != split:
        notes.append(f"using {folder} as the {'training' if split == 'train' else 'validation'} images")
    classes, class_names, order = ordered_classes(root, train or folder)
    known = set(classes)
    strangers = sorted((name for name in folders_in(folder) if name not in known), key=natural_key)
    if strangers:
        names = few(strangers, 5)
        raise ValueError(f"{folder} has classes that {train or root} lacks: {names}; {both_lists(strangers, classes)}")
    source = FolderSource(folder, classes, class_names)
    source.notes = [*notes, order, *_passed_over(source, folder)]
    return source if val_fraction is None else _part(source, split, val_fraction)


def is_held_out(name: str, val_fraction: float) -> bool:
    """Return whether an image is for validation: whether the SHA-256 of its name, CLASS/NAME with slashes, is in the
    lowest `val_fraction` of all values.

    No other image has an influence. Names are compared in Unicode's form NFC, as some file systems store others.
    """
    digest = hashlib.sha256(unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") < val_fraction * 2**64


def _part(source: FolderSource, split: Split, val_fraction: float) -> FolderSource:
    """Return the images of one split; raise ValueError if there are none."""
    part = source.selected(lambda name: is_held_out(name, val_fraction) == (split == "val"))
    kind = "validation" if split == "val" else "training"
    if not len(part):
        raise ValueError(f"--val-fraction {val_fraction} leaves no {kind} images of {len(source)}: choose another")
    share = f"{len(part)} of {len(source)} images are for {kind}, by their names (--val-fraction {val_fraction})"
    without = [part.class_names[label] for label in sorted(source.labels - part.labels)] if part.class_names else []
    missing = [f"no {kind} images of {len(without)} classes: {few(without, SHOWN)}"] if without else []
    part.notes = [*source.notes, share, *missing]
    return part


def ordered_classes(root: Path, folder: Path) -> tuple[list[str], list[str] | None, str]:
    """Return the class folders in `folder` in the order of their numbers, the class names if they differ from the
    folder names, and a description of the order.

    Raises:
        ValueError: If `classes.txt` (see `CLASS_FILES`), in `root` or `folder`, does not name all of them, or names one
            twice.
    """
    there = sorted(folders_in(folder), key=natural_key)
    for place in dict.fromkeys((root, folder)):
        file = class_file(place)
        names = None if file is None else read_class_names(place)
        if file is None or names is None:
            continue
        listed = _folders_of(names, there)
        if listed is None:
            raise ValueError(
                f"{file} does not name the class folders in {folder} ({both_lists(names, there)}): write one of them a "
                "line, or rename the file"
            )
        numbered = there == [str(number) for number in range(len(names))]
        class_names = names if numbered and len(set(names)) == len(names) else None
        return listed, class_names, f"{len(listed)} classes in the order of {file}: {in_words(class_names or listed)}"
    return there, None, f"{len(there)} classes in natural order: {in_words(there)}"


def _folders_of(names: Sequence[str], there: Sequence[str]) -> list[str] | None:
    """Return the folders that the lines of a class file name, in its order; None if they do not name all folders.

    A line is a folder's name, alone or followed by its meaning ("n01440764 tench"), or, for folders called 0, 1, 2 ...,
    the meaning of the folder with the line's index.
    """
    if list(there) == [str(number) for number in range(len(names))]:
        return list(there)
    shown = {escaped(name): name for name in there}  # a line of text cannot represent every name
    for lines in (names, [(name.split() or [name])[0] for name in names]):
        if set(shown) <= set(lines) and len(set(lines)) == len(lines):
            return [shown.get(line, line) for line in lines]
    return None


def has_images(folder: Path) -> bool:
    """Return whether `folder` directly contains images."""
    return any(
        path.suffix.lower() in IMAGE_SUFFIXES and not is_system_file(path.name) and path.is_file()
        for path in folder.iterdir()
    )


def _passed_over(source: FolderSource, folder: Path) -> list[str]:
    """Describe the files and folders in `folder` that are not in `source`."""
    notes = []
    if source.empty:
        notes.append(f"no images in {len(source.empty)} class folders of {folder}: {few(source.empty, SHOWN)}")
    if source.absent:
        notes.append(f"{folder} has no folder for {len(source.absent)} of the classes: {few(source.absent, SHOWN)}")
    loose = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    loose = [path for path in loose if not is_system_file(path.name)]
    if loose:
        notes.append(f"skipped {len(loose)} images in {folder} itself, which are in no class folder")
    if source.skipped:
        notes.append(f"skipped in the class folders of {folder}: {as_text(source.skipped)}")
    return notes


def _no_split(root: Path, split: Split) -> str:
    words = " or ".join(f"{word}/CLASS" for word in SPLIT_WORDS[split])
    classes = [name for name in sorted(folders_in(root), key=natural_key) if has_images(root / name)]
    found = ""
    if classes:
        found = (
            f" ({root} holds class folders itself, {few(classes)}: move them to train and val in it, or let "
            "--val-fraction 0.2 split them)"
        )
    return (
        f"no folder {root / split}: expected images in {words}, tar or ArrayRecord shards ({split}-*.tar, "
        f".array_record, .tfrecord or .parquet), the archives of ILSVRC2012, IDX or CIFAR files{found}"
    )
