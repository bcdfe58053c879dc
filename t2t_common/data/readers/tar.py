"""Tar shards in WebDataset's layout: KEY.jpg (or .png, .webp ...) with its label in KEY.cls, or as "label" in KEY.json.

Shards are read by random access, so order and resuming work as with any other source: the headers are read once to
locate the images; reading an image then takes one seek and one read. Reading the headers of ImageNet's shards takes
some minutes, so the index is cached (in `$T2T_CACHE`) and reused until the shards change.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from t2t_common.data.readers.image_files import IMAGE_SUFFIXES
from t2t_common.data.readers.indexed import IndexedSource, cached_index
from t2t_common.data.readers.sources import check_labels
from t2t_config.text import readable

TARS = "*.tar"
"""Glob pattern of tar shards."""

MOST_LABEL = 2**31 - 2
"""Largest label: labels are stored in 32 bits."""

MOST_PADDING = 1 << 20
"""Maximum number of zero bytes at the end of a shard; tar itself writes up to 10240, unless told otherwise."""

LEAST_PADDING, RECORDS = 3 * tarfile.BLOCKSIZE, (tarfile.RECORDSIZE, 1 << 14)
"""Valid padding: the two or three blocks that are required, or up to a full record; otherwise the file is truncated."""

INDEX_VERSION = 2
"""Version of the cached index; before 2, shards truncated between two members were accepted."""


class TarIndex(NamedTuple):
    """Locations of the images: four arrays (N,), in the order of the shards and of the members in them."""

    shard: np.ndarray
    """Index of the shard."""
    offset: np.ndarray
    """Offset of the image in its shard, in bytes."""
    size: np.ndarray
    """Size of the image in bytes."""
    label: np.ndarray


class TarSource(IndexedSource):
    """Images of tar shards, in the order of the shards and of the members in them.

    Args:
        shards: Uncompressed tar files; compressed ones do not allow random access.
        class_names: Class names by label; None derives the number of classes from the labels in the shards.
        index: Locations of the images; None reads them from the shards.

    Raises:
        ValueError: If a shard is damaged, an image has no label, or a label has no image or is out of range; the
            message names it.
    """

    kind = "tar shards"
    compared = "names, sizes, places and labels"

    def __init__(
        self, shards: Sequence[Path], class_names: list[str] | None = None, index: TarIndex | None = None
    ) -> None:
        super().__init__(shards, load_index(shards) if index is None else index)
        labels, first = np.unique(self._index.label, return_index=True)
        self.class_names = class_names
        self.num_classes = len(class_names or ()) or 1 + int(labels.max())
        for label, index in zip(labels.tolist(), first.tolist(), strict=True):
            check_labels([label], self.num_classes, str(self._shards[self._index.shard[index]]))

    def read(self, index: int) -> tuple[bytes, int]:
        return self.stored(index), int(self._index.label[index])

    def name(self, index: int) -> str:
        path, offset = self._shards[self._index.shard[index]], self._index.offset[index]
        # Names are not stored: they would be most of the index.
        name = next((member.name for _, member in members(path) if member.offset_data == offset), "?")
        return f"{path}/{readable(name, 300)}"


# --- Index --------------------------------------------------------------------------------------------------


def load_index(shards: Sequence[Path]) -> TarIndex:
    """Return the index of `shards`, see `cached_index`; raises as `index_shard`."""
    return cached_index(TarIndex, "tar-index", INDEX_VERSION, shards, index_shard)


def index_shard(path: Path) -> list[tuple[int, int, int]]:
    """Return (offset, size, label) of every image in the shard, in order.

    Raises:
        ValueError: If the file is not a tar file or is damaged, or if images and labels do not match.
    """
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    end = path.stat().st_size
    for tar, member in members(path):
        key, suffix = _split_name(member.name)
        if not member.isreg() or suffix not in (*IMAGE_SUFFIXES, ".cls", ".json"):
            continue
        if member.offset_data + member.size > end:
            raise ValueError(f"{path} is truncated within {readable(member.name)}: get another copy")
        if suffix in IMAGE_SUFFIXES:
            if key in images:
                raise ValueError(f"{path} has two images {readable(key)}: keep one")
            images[key] = (member.offset_data, member.size)
        elif suffix == ".cls" or key not in labels:  # use .json only if there is no .cls
            label = _label(_content(path, tar, member), suffix)
            if label is None and suffix == ".cls":
                raise ValueError(f"{path}: {readable(member.name)} holds no label: it should be one number")
            if label is not None:
                labels[key] = label
    unlabelled, imageless = sorted(images.keys() - labels.keys()), sorted(labels.keys() - images.keys())
    if unlabelled or imageless or not images:
        found = f"the image {readable(unlabelled[0])} has no label" if unlabelled else "there is no image"
        found += f" to {readable(imageless[0])}.cls" if imageless and not unlabelled else ""
        raise ValueError(f"{path}: {found}: expected KEY.jpg (or .png, .webp ...) and KEY.cls")
    return [(*place, labels[key]) for key, place in images.items()]


def members(path: Path, start: int = 0, end: int | None = None) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield the members of a tar file in order.

    Args:
        path: File.
        start: Offset of the tar file in it, in bytes.
        end: Offset of its end; None if it is the whole file.

    Raises:
        ValueError: If the file is not a tar file, or is damaged.
    """
    try:
        with path.open("rb") as file:
            file.seek(start)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if member.size < 0:  # the next header would be read from before this one, in an endless loop
                        raise tarfile.ReadError(f"{readable(member.name)} has {member.size} bytes")
                    yield tar, member
                _check_end(file, tar.offset, start, end)
    except Exception as error:  # damaged headers raise ValueError, OverflowError ...
        raise _unreadable(path, error) from error


def _check_end(file: IO[bytes], last: int, start: int, end: int | None) -> None:
    """Raise ReadError unless there are two blocks of zeros after `last`, the end of the last member, and nothing else.

    tarfile accepts a file that ends after a member, or continues with something other than a header, as complete.
    """
    file.seek(last)
    rest = file.read(MOST_PADDING + 1 if end is None else max(0, min(MOST_PADDING + 1, end - last)))
    if rest.strip(b"\0"):
        raise tarfile.ReadError(
            f"there is something else than a member after byte {last}: damaged, or two files in one"
        )
    if len(rest) > MOST_PADDING:
        raise tarfile.ReadError(f"there are only zeros after byte {last}: it was not written to its end")
    is_padded = len(rest) <= LEAST_PADDING or any((last - start + len(rest)) % size == 0 for size in RECORDS)
    if len(rest) < 2 * tarfile.BLOCKSIZE or len(rest) % tarfile.BLOCKSIZE or not is_padded:
        raise tarfile.ReadError(f"it is cut short: its end is missing after byte {last}")


def _content(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    try:
        stored = tar.extractfile(member)
        return stored.read() if stored else b""
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"cannot read {path} ({readable(str(error))}): it should be a tar file, uncompressed and whole")


def _split_name(name: str) -> tuple[str, str]:
    """Split a name into WebDataset's key and suffix: the key ends at the first dot of the last path component."""
    folder, _, last = name.rpartition("/")
    stem, dot, suffix = last.partition(".")
    return f"{folder}/{stem}" if folder else stem, (dot + suffix).lower()


def _label(data: bytes, suffix: str) -> int | None:
    try:
        value = int(data) if suffix == ".cls" else json.loads(data)["label"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MOST_LABEL else None
