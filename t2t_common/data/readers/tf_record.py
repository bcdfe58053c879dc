"""TFRecord shards of TFDS, read without TensorFlow: records that are `tf.train.Example` messages (see tf_example.py).

Format of a shard (tensorflow/core/lib/io/record_writer.h), little-endian: for each record, its length (8 bytes), the
masked CRC-32C of the length (4), the record, and the masked CRC-32C of the record (4). There is no directory, so the
lengths are read once, with their checksums, to locate the records, and the index is cached (in `$T2T_CACHE`). The
checksum of a record is compared whenever it is read.

TFDS writes `features.json` (names and kinds of the features) and `dataset_info.json` (records per shard) beside the
shards. Without them, the features have to be called `image` and `label`, and `classes.txt` has to name the classes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from t2t_common.data.images import UnreadableImageError
from t2t_common.data.readers.indexed import IndexedSource, cached_index
from t2t_common.data.readers.shards import read_class_names
from t2t_common.data.readers.tf_example import image_and_label
from t2t_common.io.crc32c import crc32c, crc32c_of_rows, masked
from t2t_config.text import few, readable
from t2t_config.weights.json_limits import parse

INDEX_VERSION = 1
HEADER, FOOTER = struct.Struct("<QI"), struct.Struct("<I")
MOST_JSON = 1 << 26
"""Maximum size of a JSON file in bytes."""
GZIP = b"\x1f\x8b"
DEFAULT_KEYS = ("image", "label")
"""Names of image and label, as in almost all image data sets of TFDS."""


class TfRecordIndex(NamedTuple):
    """Locations of the records: four arrays (N,), in the order of the shards and of the records in them."""

    shard: np.ndarray
    """Index of the shard."""
    offset: np.ndarray
    """Offset of the record in its shard, in bytes."""
    size: np.ndarray
    """Size of the record in bytes."""
    crc: np.ndarray
    """Masked CRC-32C of the record."""


class TfRecordSource(IndexedSource):
    """Images of TFRecord shards, in the order of the shards and of the records in them.

    Args:
        shards: Uncompressed TFRecord files.
        class_names: Class names by label; None numbers the classes, if `features.json` says how many there are.

    Raises:
        ValueError: If a shard is damaged or has another number of records than `dataset_info.json` says, or the classes
            or features are unknown.
    """

    kind = "TFRecord shards"
    compared = "names, sizes, places and checksums"

    def __init__(self, shards: Sequence[Path], class_names: list[str] | None) -> None:
        folder = shards[0].parent
        self._keys, classes = features_of(folder)
        class_names = class_names or read_class_names(folder, [f"{self._keys[1]}.labels.txt"])
        if class_names is None and classes is None:
            raise ValueError(f"the classes of {folder} are not named: write classes.txt beside the shards, one a line")
        self.class_names, self.num_classes = class_names, len(class_names or ()) or classes or 0
        super().__init__(shards, cached_index(TfRecordIndex, "tfrecord-index", INDEX_VERSION, shards, index_shard))
        _check_lengths(folder, shards, np.bincount(self._index.shard, minlength=len(shards)).tolist())

    def read(self, index: int) -> tuple[bytes, int]:
        record = self.stored(index)
        if masked(crc32c(record)) != self._index.crc[index]:
            raise UnreadableImageError(f"unreadable record {self.name(index)} (its CRC-32C differs): get another copy")
        return image_and_label(record, self.num_classes, lambda: self.name(index), self._keys)

    def name(self, index: int) -> str:
        shard = self._index.shard[index]
        return f"{self._shards[shard]}[{index - int(np.searchsorted(self._index.shard, shard))}]"


def index_shard(path: Path) -> list[tuple[int, int, int]]:
    """Return (offset, size, masked checksum) of every record in the shard, in order.

    Raises:
        ValueError: If the file is compressed, truncated or damaged, or has no records.
    """
    found: list[tuple[int, int, int]] = []
    headers = bytearray()
    end, place = path.stat().st_size, 0
    with path.open("rb") as file:
        while place < end:
            header = file.read(HEADER.size)
            if header.startswith(GZIP) and not place:
                raise ValueError(f"{path} is compressed: unpack it, for random access")
            size = HEADER.unpack(header)[0] if len(header) == HEADER.size else end
            offset = place + HEADER.size
            place = offset + size + FOOTER.size
            if place > end:
                _check_headers(path, headers + header)  # more precise, if it is the length that is damaged
                raise ValueError(f"{path} is truncated within record {len(found)}: get another copy")
            file.seek(size, os.SEEK_CUR)
            headers += header
            found.append((offset, size, FOOTER.unpack(file.read(FOOTER.size))[0]))
    if not found:
        raise ValueError(f"{path} is empty: get another copy")
    _check_headers(path, headers)
    return found


def _check_headers(path: Path, headers: bytes | bytearray) -> None:
    """Raise ValueError if the checksum of a length is wrong; the last header may be truncated."""
    count = len(headers) // HEADER.size
    rows = np.frombuffer(headers, np.uint8, count * HEADER.size).reshape(count, HEADER.size)
    wrong = np.flatnonzero(masked(crc32c_of_rows(rows[:, :8])) != np.ascontiguousarray(rows[:, 8:]).view("<u4")[:, 0])
    if len(wrong):
        raise ValueError(
            f"{path} is damaged: the CRC-32C of the length of record {wrong[0]} differs, or it is no TFRecord file: "
            "get another copy"
        )


# --- Metadata of TFDS ---------------------------------------------------------------------------------------


def features_of(folder: Path) -> tuple[tuple[str, str], int | None]:
    """Return the names of image and label, and the number of classes, from TFDS's `features.json` if it exists.

    Raises:
        ValueError: If it is unreadable, or does not name one image and one label.
    """
    path = folder / "features.json"
    if not path.is_file():
        return DEFAULT_KEYS, None
    listed = _at(_json(path), "featuresDict", "features")
    if not isinstance(listed, dict):  # written by a version before 4.4
        return DEFAULT_KEYS, None
    image, label = (
        _key(listed, kind, preferred) for kind, preferred in zip(("image", "classLabel"), DEFAULT_KEYS, strict=True)
    )
    if image is None or label is None:
        raise ValueError(
            f"{path} has the features {few(listed, 10)}: expected one image and one label, which it calls classLabel"
        )
    return (image, label), _whole(_at(listed, label, "classLabel", "numClasses"))


def _key(listed: dict[str, Any], kind: str, preferred: str) -> str | None:
    """Return the name of the feature of a kind: `preferred`, else the only one, else None."""
    names = [name for name, feature in listed.items() if isinstance(feature, dict) and kind in feature]
    return preferred if preferred in names else names[0] if len(names) == 1 else None


def _check_lengths(folder: Path, shards: Sequence[Path], counts: list[int]) -> None:
    """Raise ValueError if `dataset_info.json` gives the shards other numbers of records."""
    path = folder / "dataset_info.json"
    if not path.is_file():
        return
    splits = _at(_json(path), "splits")
    for split in splits if isinstance(splits, list) else ():
        name, lengths = _at(split, "name"), _at(split, "shardLengths")
        if not isinstance(lengths, list) or f"-{name}.tfrecord-" not in shards[0].name:
            continue
        expected = [_whole(length) for length in lengths]
        if expected != counts:
            differing = next((n for n, (a, b) in enumerate(zip(expected, counts, strict=False)) if a != b), None)
            what = (
                f"{len(expected)} shards, there are {len(counts)}"
                if differing is None
                else f"{expected[differing]} records in {shards[differing].name}, there are {counts[differing]}"
            )
            raise ValueError(f"{path} says {what}: get the data again")


def _json(path: Path) -> Any:
    try:
        if path.stat().st_size > MOST_JSON:
            raise ValueError("it is too large")
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"cannot read {path} ({readable(str(error), 200)}): get another copy") from error


def _at(value: Any, *keys: str) -> Any:
    """Return the value below `keys` in nested dictionaries; None if there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _whole(value: Any) -> int | None:
    """Return a number as protobuf writes it in JSON, which is text for 64 bits; None if it is none."""
    return int(value) if str(value).isdecimal() and len(str(value)) < 19 else None
