"""Data sets in shards: a few large files with many images each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from t2t_common.data.readers.sources import Split
from t2t_config.text import escaped

SPLIT_WORDS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "eval", "evaluation", "test"),
}
"""Names of a split's folder or files; the first that exists is used."""

CLASS_FILES = ("classes.txt", "classnames.txt", "label.labels.txt")
"""Files with the class names, one per line in the order of the labels; the last name is TFDS's."""


def find_shards(root: Path, split: Split, pattern: str, *, check: bool = True) -> list[Path]:
    """Return the shards of `split`, sorted by name; empty if there are none.

    These are all shards in `root/train`, else those in `root` that have the split's word in their names, between dots
    and dashes: `train-000000.tar`, `imagenet1k-validation-07.tar`, `imagenet2012-train.array_record-00000-of-01024`.

    Args:
        root: Folder of the data.
        split: Split to find.
        pattern: Glob pattern of the file names.
        check: Whether to require that no shard is missing.

    Raises:
        ValueError: If some of the files called `-00000-of-00010` and so on, or numbered consecutively, are missing.
    """
    there = list(root.glob(pattern))
    for word in SPLIT_WORDS[split]:
        in_root = [path for path in there if word in re.split(r"[-_.]", path.name)]
        found = sorted(path for path in (list((root / word).glob(pattern)) or in_root) if path.is_file())
        if found and check:
            _check_complete(found)
            _check_row(found)
        if found:
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


def _check_row(shards: list[Path]) -> None:
    """Raise ValueError if the numbers at the ends of names have gaps, or do not start at 0 or 1."""
    for row in _rows(shards):
        first, last = min(row), max(row)
        start = first if first < 2 else 0
        missing = last - start + 1 - len(row)
        if missing:
            number = next(number for number in range(start, last) if number not in row)
            raise ValueError(
                f"{missing} of the shards up to {row[last]} are missing, the first is number {number}: get them, or "
                "rename the others to a row without gaps"
            )


def _rows(shards: list[Path]) -> list[dict[int, Path]]:
    """Return groups of at least two shards whose names differ only in a number at the end, by that number."""
    rows: dict[str, dict[int, Path]] = {}
    for path in shards:
        if (found := re.fullmatch(r"(.*?)(\d{1,18})", path.stem)) and "-of-" not in path.name:
            rows.setdefault(found[1], {})[int(found[2])] = path
    return [row for row in rows.values() if len(row) > 1]


def row_notes(shards: list[Path]) -> list[str]:
    """Return notes on shards whose numbers start at 1, as number 0 might be missing."""
    firsts = [row[1] for row in _rows(shards) if min(row) == 1]
    return [f"the shards begin with {path}: if there was a number 0, it is missing" for path in firsts]


def read_class_names(root: Path, files: Sequence[str] = CLASS_FILES) -> list[str] | None:
    """Read the class names from the first of `files` in `root`; None if there is none.

    Raises:
        ValueError: If the file is not UTF-8 text, or contains no names.
    """
    path = class_file(root, files)
    if path is None:
        return None
    try:
        names = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path} ({error}): it should be text, one class a line") from error
    if not names or not all(name.strip() for name in names):
        raise ValueError(f"{path} has no names, or an empty line: it should hold one class a line")
    return [escaped(name.strip()) for name in names]


def class_file(root: Path, files: Sequence[str] = CLASS_FILES) -> Path | None:
    """Return the first of `files` that exists in `root`; None if there is none."""
    return next((path for path in (root / name for name in files) if path.is_file()), None)
