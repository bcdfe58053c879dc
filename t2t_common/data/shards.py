"""Data sets in shards: many images in each of a few large files."""

from __future__ import annotations

import re
from pathlib import Path

from t2t_common.data.sources import Split

SPLIT_WORDS: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("val", "validation", "valid", "test")}
"""What a folder or a file of a split is called; the first that is there counts."""

RECORDS = "*array_record*"
"""What ArrayRecord shards are called: `train-00000-of-00010.array_record`, TFDS's
`NAME-train.array_record-00000-of-00010`."""

CLASS_FILES = ("classes.txt", "classnames.txt", "label.labels.txt")
"""Names of the classes, one a line in the order of the labels; the last is how TFDS calls it."""


def find_shards(root: Path, split: Split, pattern: str) -> list[Path]:
    """Shards of `split` in the order of their names; empty without any.

    All in `root/train`, else those in `root` that have the word in their names, between dots and dashes:
    `train-000000.tar`, `imagenet1k-validation-07.tar`, `imagenet2012-train.array_record-00000-of-01024`.

    Raises:
        ValueError: files called `-00000-of-00010` and so on are not all there.
    """
    for word in SPLIT_WORDS[split]:
        in_root = [path for path in root.glob(pattern) if word in re.split(r"[-_.]", path.name)]
        found = sorted(path for path in (list((root / word).glob(pattern)) or in_root) if path.is_file())
        if found:
            _check_complete(found)
            return found
    return []


def _check_complete(shards: list[Path]) -> None:
    numbers = [re.search(r"-(\d+)-of-(\d+)", path.name) for path in shards]
    present = {(int(found[1]), int(found[2])) for found in numbers if found}
    for total in {of for _, of in present}:
        there = {number for number, of in present if of == total and number < of}
        if len(there) < total:
            first = next(number for number in range(total) if number not in there)
            raise ValueError(
                f"{total - len(there)} of {total} shards are missing in {shards[0].parent}, the first is number "
                f"{first}: get them, or rename the others"
            )


def read_class_names(root: Path) -> list[str] | None:
    """Names of the classes from the first of CLASS_FILES in `root`; None without one.

    Raises:
        ValueError: no UTF-8 text, or no names in it.
    """
    for path in (root / name for name in CLASS_FILES):
        if not path.is_file():
            continue
        try:
            names = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot read {path} ({error}): it should be text, one class a line") from error
        if not names or not all(name.strip() for name in names):
            raise ValueError(f"{path} has no names, or an empty line: it should hold one class a line")
        return [name.strip() for name in names]
    return None
