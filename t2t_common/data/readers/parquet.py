"""Parquet shards of image data sets, as published on the Hugging Face Hub: a column of image files and one of labels.

The image column is `struct<bytes, path>` (or plain binary), of which only the bytes are used; the label is an integer.
A shard consists of row groups, the smallest unit that is read: usually 100 images. The directory of the row groups at
the end of each shard is read once. To read one image, its row group is read, and the last ones read are kept in memory
up to `MOST_KEPT` bytes. Reading in order, as evaluation and `python -m t2t_jax.data --write` do, reads each row group
once; shuffled training reads a row group for almost every image.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from t2t_common.data.hub_metadata import as_imagenet, hub_class_names, hub_features
from t2t_common.data.images import UnreadableImageError
from t2t_common.data.readers.sources import ShardSource, check_labels
from t2t_common.io.terminal import bar
from t2t_config.text import few, reason

MOST_KEPT = 256 << 20
"""Size in bytes up to which row groups are kept in memory, in each process; at least one is kept."""

MOST_GROUP = 1 << 30
"""Maximum size of a row group in bytes, which has to fit in memory."""

ROWS = 64
"""Number of rows that are decoded at a time, so that the size is known before a row group fills the memory."""

THREADS = 16
IMAGES, LABELS = ("image", "img"), ("label", "fine_label")
"""Preferred names of the columns; `fine_label` is CIFAR-100's."""


class Columns(NamedTuple):
    """Columns of image and label: names, and the name of the leaf that holds the image's bytes."""

    image: str
    leaf: str
    label: str


class ParquetSource(ShardSource):
    """Images of Parquet shards, in the order of the shards and of the rows in them.

    Args:
        shards: Parquet files.
        class_names: Class names by label; None takes them from the Hub's metadata (see hub_metadata.py), else derives
            the number of classes from the labels.

    Raises:
        ValueError: If a shard is damaged or lacks the columns, the shards differ in them, or a label is out of range.
    """

    kind = "Parquet shards"

    def __init__(self, shards: Sequence[Path], class_names: list[str] | None) -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(bar(pool.map(_read_directory, shards), "reading directories", len(shards)))
        schema = found[0].schema.to_arrow_schema()
        self._columns = _columns(shards[0], schema)
        for path, directory in zip(shards, found, strict=True):
            if _columns(path, other := directory.schema.to_arrow_schema()) != self._columns:
                raise ValueError(f"{path} has the columns {few(other.names, 10)}, {shards[0]} others: remove one")
        self._shards = [(path, directory.num_rows) for path, directory in zip(shards, found, strict=True)]
        groups = [(shard, group) for shard, directory in enumerate(found) for group in range(directory.num_row_groups)]
        self._groups = np.array(groups, np.int32).reshape(-1, 2)
        rows = [found[shard].row_group(group).num_rows for shard, group in groups]
        self._starts = np.concatenate([[0], np.cumsum(np.array(rows, np.int64))])
        self._name_classes(class_names, schema)
        self._kept = Kept(self._read_group, MOST_KEPT)

    def _name_classes(self, class_names: list[str] | None, schema: Any) -> None:
        """Set names and number of classes, and notes on them."""
        names = class_names or hub_class_names(schema, self._shards[0][0].parent, self._columns.label)
        self.class_names, self.notes = as_imagenet(names) if names else (None, [])
        if self.class_names is None:
            labels = [_labels(path, self._columns.label) for path, _ in self._shards]
            self.num_classes = 1 + max(int(column.max(initial=0)) for column in labels)
        else:
            self.num_classes = len(self.class_names)

    @property
    def shards(self) -> list[tuple[Path, int]]:
        return self._shards

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, index: int) -> tuple[bytes, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        group = int(np.searchsorted(self._starts, index, "right")) - 1
        images, labels = self._kept.get(group)
        row = index - int(self._starts[group])
        image, label = images[row].as_py(), labels[row].as_py()
        if image is None:
            raise UnreadableImageError(f"unreadable image {self.name(index)} (it has no bytes): remove the row")
        if label is None:
            raise ValueError(f"{self.name(index)} has no label: remove the row")
        check_labels([label], self.num_classes, self.name(index))
        return image, label

    def _read_group(self, number: int) -> tuple[int, tuple[Any, Any]]:
        """Return the size of a row group in bytes, and its images and labels."""
        shard, group = self._groups[number].tolist()
        path, columns = self._shards[shard][0], self._columns
        batches, size = [], 0
        with _reading(path), pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True) as file:
            wanted = [columns.leaf, columns.label]
            for batch in file.iter_batches(ROWS, row_groups=[group], columns=wanted, use_threads=False):
                batches.append(batch)
                size += batch.nbytes
                if size > MOST_GROUP:
                    raise ValueError(f"row group {group} has more than {MOST_GROUP:,} bytes: write smaller ones")
        table = pa.Table.from_batches(batches) if batches else None
        if table is None or len(table) != self._starts[number + 1] - self._starts[number]:
            raise ValueError(f"{path} has changed since it was opened: get another copy")
        images = table.column(columns.image)
        if columns.leaf != columns.image:
            images = pa.chunked_array([chunk.field("bytes") for chunk in images.chunks])
        return size, (images, table.column(columns.label))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_kept"}  # other processes read their own

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._kept = Kept(self._read_group, MOST_KEPT)


class Kept:
    """The values that were used last, each loaded by one thread while others that need it wait.

    Args:
        load: Returns size and value for a key.
        most: Total size up to which values are kept, besides the one used last.
    """

    def __init__(self, load: Callable[[int], tuple[int, Any]], most: int) -> None:
        self._load, self._most = load, most
        self._lock = threading.Lock()
        self._entries: dict[int, _Entry] = {}

    def get(self, key: int) -> Any:
        """Return the value for `key`; raises as `load`, which is then called again the next time."""
        with self._lock:
            entry = self._entries.pop(key) if key in self._entries else _Entry()
            self._entries[key] = entry  # the last one is the newest
        with entry.lock:
            if entry.value is None:
                entry.size, entry.value = self._load(key)
        with self._lock:
            total = sum(other.size for other in self._entries.values())
            for old in list(self._entries):
                if total <= self._most or old == key:
                    break
                total -= self._entries.pop(old).size
        return entry.value


class _Entry:
    """A value, once it has been loaded."""

    def __init__(self) -> None:
        self.lock, self.size, self.value = threading.Lock(), 0, None


# --- Files --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Name the file in the errors of pyarrow, which are of many types."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"cannot read {path} ({reason(error)}): get another copy") from error


def _read_directory(path: Path) -> Any:
    """Return the `FileMetaData` of a shard; raise ValueError if it is damaged."""
    with _reading(path):
        directory = pq.read_metadata(path)
        rows = [directory.row_group(group).num_rows for group in range(directory.num_row_groups)]
        if sum(rows) != directory.num_rows or min(rows, default=0) < 0:
            raise ValueError(f"{directory.num_rows} rows in all, {sum(rows)} in its row groups")
    return directory


def _columns(path: Path, schema: Any) -> Columns:
    """Return the columns of image and label; raise ValueError if there is not one of each."""
    features = hub_features(schema)
    leaves = {field.name: leaf for field in schema if (leaf := _image_leaf(field)) is not None}
    numbers = [field.name for field in schema if pa.types.is_integer(field.type)]
    named = [name for name in numbers if "names" in features.get(name, {})]
    image = _choose(list(leaves), IMAGES)
    label = _choose(named, LABELS) or _choose(numbers, LABELS)
    if image is None or label is None:
        lists = few((f"{field.name}: {field.type}" for field in schema), 10)
        raise ValueError(
            f"{path} has the columns {lists}: expected one with image files, struct<bytes: binary>, and one integer "
            "label; call them image and label"
        )
    return Columns(image, leaves[image], label)


def _image_leaf(field: Any) -> str | None:
    """Return the name of the leaf with the bytes of image files, as Parquet writes it; None for other columns."""
    if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
        return field.name
    if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
        kind = field.type.field("bytes").type
        return f"{field.name}.bytes" if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else None
    return None


def _choose(names: list[str], preferred: Sequence[str]) -> str | None:
    """Return the first of `preferred` among `names`, else the only name, else None."""
    return next((name for name in preferred if name in names), names[0] if len(names) == 1 else None)


def _labels(path: Path, column: str) -> np.ndarray:
    """Return all labels of a shard that are not null."""
    with _reading(path):
        return pq.read_table(path, columns=[column], use_threads=False).column(column).drop_null().to_numpy()
