"""Images located by an index: offset and size in a shard, read once from the shards and then kept in `$T2T_CACHE`."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sys
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from t2t_common.data.readers.sources import EncodedSource
from t2t_common.io.files import replace_file
from t2t_common.io.terminal import bar
from t2t_config.weights.download import cache_dir

THREADS = 16
"""Number of shards whose headers are read concurrently, to overlap network latency."""

Index = TypeVar("Index", bound=Any)


class IndexedSource(EncodedSource):
    """Images of shards, located by an index; the identity of the data includes the index.

    Attributes:
        kind: Description of the shards, in words.
        compared: Description of what the index adds to the identity.
    """

    kind: ClassVar[str]
    compared: ClassVar[str]

    def __init__(self, shards: Sequence[Path], index: Any) -> None:
        """
        Args:
            shards: Shard files.
            index: NamedTuple as returned by `cached_index`.
        """
        self._shards, self._index = list(shards), index

    @property
    def shards(self) -> list[Path]:
        """Shard files."""
        return self._shards

    @property
    def index(self) -> Any:
        """Locations of the images in the shards."""
        return self._index

    def __len__(self) -> int:
        return len(self._index.shard)

    def stored(self, index: int) -> bytes:
        """Return the bytes that the index locates; raise ValueError if the file cannot be read or is shorter."""
        path = self._shards[self._index.shard[index]]
        offset, size = int(self._index.offset[index]), int(self._index.size[index])
        try:
            # Opened on every access: a thousand shards would need as many open files in every process.
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise ValueError(f"cannot read {path} ({error.strerror or error}): check the disk") from error
        if len(data) != size:
            raise ValueError(f"{path} has become shorter since it was opened: get another copy")
        return data


def cached_index(
    kind: type[Index],
    name: str,
    version: int,
    shards: Sequence[Path],
    read: Callable[[Path], Sequence[tuple[int, ...]]],
) -> Index:
    """Return the index of `shards`: from the cache if they are unchanged, else read from them and then cached.

    Args:
        kind: NamedTuple of the index, whose fields are arrays (N,); the first three are `shard`, `offset` and `size`.
        name: Folder of the index in the cache.
        version: Version of the index; another one in the cache is not used.
        shards: Files to index.
        read: Returns the other fields of every image of a shard, in order.

    Raises:
        ValueError: As raised by `read`.
    """
    names = [str(path.absolute()) for path in shards]
    stamp = np.array([_stamp(path) for path in shards], np.int64)
    kept = cache_dir() / name / f"{hashlib.sha256(json.dumps(names).encode()).hexdigest()[:32]}.npz"
    with (
        contextlib.suppress(Exception),  # missing or damaged, which raises almost any error
        zipfile.ZipFile(kept) as archive,
    ):
        found = {name: _column(archive, name) for name in ("stamp", *kind._fields)}
        is_current = _column(archive, "version") == version and np.array_equal(found.pop("stamp"), stamp)
        if is_current and _is_sound(index := kind(**found), stamp):
            return index
    index = _read_index(kind, shards, read)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(kept) as temporary, temporary.open("wb") as target:
            np.savez(target, version=version, stamp=stamp, **index._asdict())
    except (OSError, ValueError) as error:
        print(f"the index of {shards[0].parent} is not kept ({error}): set T2T_CACHE", file=sys.stderr)
    return index


def _stamp(path: Path) -> tuple[int, int, int]:
    """Return size and times of a file; a writer can reset the modification time, but not the inode's change time."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _column(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Return an array of a `np.savez` file; `np.load` would decompress data of any size."""
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError("it is packed, which np.savez never does")
    return np.lib.format.read_array(io.BytesIO(archive.read(info)), allow_pickle=False)


def _is_sound(index: Any, stamp: np.ndarray) -> bool:
    """Return whether every image is inside one of the shards, whose sizes are in `stamp`."""
    if len({column.shape for column in index}) != 1 or any(column.dtype.kind != "i" for column in index):
        return False
    if index.shard.ndim != 1 or not len(index.shard) or min(int(column.min()) for column in index) < 0:
        return False
    return bool(index.shard.max() < len(stamp) and (index.offset + index.size <= stamp[index.shard, 0]).all())


def _read_index(kind: type[Index], shards: Sequence[Path], read: Callable[[Path], Sequence[tuple[int, ...]]]) -> Index:
    columns = len(kind._fields) - 1
    with ThreadPoolExecutor(THREADS) as pool:
        found = bar(pool.map(read, shards), "reading headers", len(shards))
        parts = [np.array(part, np.int64).reshape(-1, columns).T for part in found]
    shard = np.repeat(np.arange(len(shards), dtype=np.int32), [part.shape[1] for part in parts])
    return kind(shard, *np.concatenate(parts, axis=1))
