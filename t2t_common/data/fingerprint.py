"""Identity of a run's data as counts and digests, to check that a resumed run has the same data.

An identity is a dictionary of JSON values, stored in the metadata of every checkpoint (see
t2t_common/run/save_policy.py):

    {"train": PART, "val": PART, "token_labels": PART or absent}
    PART: {"kind": "an ImageFolder tree", "images": 120, "num_classes": 3, "compared": "contents",
           "parts": {"cat": [40, "9f86d081884c7d65"], ...}}

`parts` are the class folders of a tree, the shards, or all arrays together, each with its number of images and a
digest. The digest is of the file contents if the files hold at most `MOST_BYTES`, else of the properties named by
`compared`, as reading a large data set at every start would take too long. File times are ignored, so that a copy
counts as the same data.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from t2t_common.data.classes import MappedSource
from t2t_common.data.readers.indexed import IndexedSource
from t2t_common.data.readers.sources import ArraySource, FolderSource, ShardSource, Source
from t2t_common.data.readers.tar import TarSource
from t2t_common.data.token_labels import TokenLabelSource
from t2t_common.io.terminal import bar
from t2t_config.text import few, readable

Identity = dict[str, Any]

MOST_BYTES = 1 << 30
"""Maximum total size of a split's files, in bytes, for which their contents are read."""
MOST_PARTS = 2000
"""Maximum number of separate parts; more are combined into one, as the identity is stored with every checkpoint."""
END = 2048
"""Number of bytes read from the end of a label map if the maps are too large to read in full: they hold the directory
of the zip file, which has a CRC-32 of every tensor."""
END_OF_RECORDS = 1 << 16
"""Number of bytes read from the end of an ArrayRecord or Parquet shard, which hold its directory."""
DIGITS = 16
THREADS = 16

CONTENTS = "contents"
ALL = "all"
"""Name of a part that contains all images."""

Files = Mapping[str, Sequence[tuple[str, Path]]]
"""Part -> (name included in the digest, file) of each of its files, in the order of the images."""


def data_identity(train: Source, val: Source) -> Identity:
    """Return the identity of a run's data.

    Args:
        train: Training images, with their label maps if the run uses them.
        val: Validation images.

    Raises:
        ValueError: If a file cannot be read; the message names it.
    """
    if isinstance(train, TokenLabelSource):
        return {
            "train": identify(train.images),
            "val": identify(val),
            "token_labels": _of_label_maps(train),
        }
    return {"train": identify(train), "val": identify(val)}


def classes_with_images(*sources: Source) -> set[int]:
    """Return the classes with an image in `sources`; for a source that stores labels in its records, all classes."""
    return set().union(*map(_classes_with_images, sources))


def _classes_with_images(source: Source) -> set[int]:
    if isinstance(source, MappedSource):
        return {source.places[label] for label in _classes_with_images(source.source)}
    if isinstance(source, TokenLabelSource):
        source = source.images
    if isinstance(source, ArraySource):
        return set(np.unique(source.arrays[1]).tolist())
    if isinstance(source, TarSource):
        return set(np.unique(source.index.label).tolist())
    if isinstance(source, FolderSource):
        return source.labels
    return set(range(source.num_classes))


def identify(source: Source) -> Identity:
    """Return the identity of one split, as it is before classes are renumbered; raises as `data_identity`."""
    if isinstance(source, MappedSource):
        return identify(source.source)
    if isinstance(source, ArraySource):
        return _of_arrays(source)
    if isinstance(source, FolderSource):
        files = _by_class(source, source.path)
        return _of_files("an ImageFolder tree", source, files, {part: len(found) for part, found in files.items()})
    if isinstance(source, IndexedSource):
        return _of_index(source)
    if isinstance(source, ShardSource):
        files = {path.name: [(path.name, path)] for path, _ in source.shards}
        counts = {path.name: count for path, count in source.shards}
        return _of_files(source.kind, source, files, counts, end=END_OF_RECORDS)
    return _entry("images of a kind of their own", source, "their number", {ALL: [len(source), ""]})


# --- Sources ------------------------------------------------------------------------------------------------


def _entry(kind: str, source: Source, compared: str, parts: Mapping[str, list[Any]]) -> Identity:
    """Return the stored entry of a split; too many parts are combined into one."""
    if len(parts) > MOST_PARTS:
        together = hashlib.sha256(
            "".join(f"{name} {count} {digest}\n" for name, (count, digest) in parts.items()).encode()
        )
        parts = {ALL: [sum(count for count, _ in parts.values()), together.hexdigest()[:DIGITS]]}
    return {
        "kind": kind,
        "images": len(source),
        "num_classes": source.num_classes,
        "compared": compared,
        "parts": dict(parts),
    }


def _of_arrays(source: ArraySource) -> Identity:
    digest = hashlib.sha256()
    for array in source.arrays:
        digest.update(f"{array.shape} {array.dtype.str}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return _entry("one array", source, CONTENTS, {ALL: [len(source), digest.hexdigest()[:DIGITS]]})


def _by_class(source: FolderSource, path_of: Callable[[int], Path]) -> dict[str, list[tuple[str, Path]]]:
    files: dict[str, list[tuple[str, Path]]] = {}
    for index in range(len(source)):
        name = source.relative_path(index)
        files.setdefault(_text(name.parts[0]), []).append((_text(name.as_posix()), path_of(index)))
    return files


def _of_index(source: IndexedSource) -> Identity:
    """Return the identity of shards with an index, which has the offset, size and label or checksum of every image."""
    shard, *columns = source.index
    numbers = range(len(source.shards))
    of_shard = [np.flatnonzero(shard == number) for number in numbers]
    files = {path.name: [(path.name, path)] for path in source.shards}
    more = {
        path.name: b"".join(np.ascontiguousarray(column[own], "<i8").tobytes() for column in columns)
        for path, own in zip(source.shards, of_shard, strict=True)
    }
    counts = {path.name: len(own) for path, own in zip(source.shards, of_shard, strict=True)}
    return _of_files(source.kind, source, files, counts, more=more, compared=source.compared)


def _of_label_maps(source: TokenLabelSource) -> Identity:
    files = _by_class(source.images, source.map_path)
    counts = {part: len(found) for part, found in files.items()}
    return _of_files("label maps", source, files, counts, end=END, remedy="make it, or check --token-labels")


def _text(name: str) -> str:
    """Return `name` in a form that JSON and UTF-8 can represent."""
    return name.encode("utf-8", "backslashreplace").decode()


# --- Files --------------------------------------------------------------------------------------------------


def _of_files(
    kind: str,
    source: Source,
    files: Files,
    counts: Mapping[str, int],
    *,
    more: Mapping[str, bytes] | None = None,
    end: int = 0,
    compared: str = "names and sizes",
    remedy: str = "check the disk",
) -> Identity:
    """Return the identity of a source stored in files.

    Args:
        kind: Description of the data, in words.
        source: Source that the files belong to.
        files: Files by part.
        counts: Number of images by part.
        more: By part, data to include in the digest besides names and sizes.
        end: Number of bytes at the end of each file to include if not all can be read.
        compared: Description of what is compared if not all can be read; the ends are added if `end` is set.
        remedy: Advice in the error message for a file that cannot be read.
    """

    def sizes_of(found: Sequence[tuple[str, Path]]) -> list[int]:
        with _reading(remedy):
            return [path.stat().st_size for _, path in found]

    with ThreadPoolExecutor(THREADS) as pool:
        sizes = dict(zip(files, bar(pool.map(sizes_of, files.values()), "comparing sizes", len(files)), strict=True))
        whole = sum(map(sum, sizes.values())) <= MOST_BYTES

        def digest(part: str) -> str:
            found = hashlib.sha256((more or {}).get(part, b""))
            for (name, path), size in zip(files[part], sizes[part], strict=True):
                found.update(f"{name}\0{size}\0".encode())
                with _reading(remedy):
                    found.update(_digest_end(path, size if whole else min(end, size)))
            return found.hexdigest()[:DIGITS]

        digests = bar(pool.map(digest, files), "comparing contents", len(files))
        parts = {part: [counts[part], found] for part, found in zip(files, digests, strict=True)}
    return _entry(kind, source, CONTENTS if whole else compared + (" and ends" if end else ""), parts)


def _digest_end(path: Path, count: int) -> bytes:
    """Return the digest of the last `count` bytes of a file; b"" for 0 bytes."""
    if not count:
        return b""
    with path.open("rb") as file:
        file.seek(-count, os.SEEK_END)
        return hashlib.file_digest(file, "sha256").digest()


@contextlib.contextmanager
def _reading(remedy: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"cannot read {error.filename} ({error.strerror or error}): {remedy}") from error


# --- Comparing ----------------------------------------------------------------------------------------------


def digest_of(identity: Identity) -> bytes:
    """Return 32 bytes that are equal for equal identities."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).digest()


def check_alike(digests: Sequence[bytes]) -> None:
    """Raise ValueError if the processes of a run, given one digest each, do not all have the same data."""
    others = [str(index) for index, digest in enumerate(digests) if digest != digests[0]]
    if others:
        raise ValueError(f"the data of process {few(others)} are not those of process 0: give all the same --data")


NAMES = {"train": "training images", "val": "validation images", "token_labels": "label maps"}


def data_changes(there: Any, here: Identity) -> str:
    """Describe the differences between the data of a checkpoint and of the run that resumes it; '' if there are none.

    Args:
        there: Identity in the checkpoint's metadata.
        here: Identity of the current data.
    """
    found = [
        f"{name}: {changes}"
        for split, name in NAMES.items()
        if (changes := _part_changes(_sound(there, split), here.get(split)))
    ]
    return "; ".join(found)


def _sound(identity: Any, split: str) -> Identity | None:
    """Return the entry of `split` in an identity read from a file; None if it is missing or malformed."""
    entry = identity.get(split) if isinstance(identity, dict) else None
    if not isinstance(entry, dict) or not isinstance(entry.get("parts"), dict):
        return None
    return entry if all(isinstance(part, list) and len(part) == 2 for part in entry["parts"].values()) else None


def _part_changes(there: Identity | None, here: Identity | None) -> str:
    if there is None or here is None:
        return "" if there is here else f"{'none' if there is None else 'some'} -> {'none' if here is None else 'some'}"
    if there == here:
        return ""
    if there.get("kind") != here["kind"]:
        return f"{readable(str(there.get('kind')))} -> {here['kind']}"
    found = []
    if there.get("images") != here["images"]:
        found.append(f"{readable(str(there.get('images')))} -> {here['images']}")
    if there.get("num_classes") != here["num_classes"]:
        found.append(f"{readable(str(there.get('num_classes')))} classes -> {here['num_classes']}")
    theirs, ours = there["parts"], here["parts"]
    gone, new = [name for name in theirs if name not in ours], [name for name in ours if name not in theirs]
    both = [name for name in theirs if name in ours and theirs[name] != ours[name] and name != ALL]
    changed = [name for name in both if theirs[name][0] == ours[name][0]]
    counts = [f"{name} {theirs[name][0]} -> {ours[name][0]}" for name in both if name not in changed]
    for text, names in (("removed", gone), ("new", new), ("", counts), ("changed", changed)):
        if names:
            found.append(f"{text} {few(names)}".strip())
    return ", ".join(found) or "not the same, or in another order"
