"""ArrayRecord shards: records with random access, each a `tf.train.Example` (see tf_example.py).

TFDS writes this format for its image data sets (`tfds build --file_format=array_record`), so its folders can be opened
directly; TensorFlow is not needed. The class names are in `classes.txt` (TFDS: `label.labels.txt`), one per line.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader

from t2t_common.data.readers.sources import ShardSource
from t2t_common.data.readers.tf_example import image_and_label, reason, unreadable

THREADS = 16


class ArrayRecordSource(ShardSource):
    """Images of ArrayRecord shards, in the order of the shards and of the records in them.

    Args:
        shards: ArrayRecord files; `group_size:1` makes random access fast.
        class_names: Class names by label.

    Raises:
        ValueError: If a shard is damaged, or the classes are not named.
    """

    kind = "ArrayRecord shards"

    def __init__(self, shards: Sequence[Path], class_names: list[str] | None) -> None:
        if class_names is None:
            raise ValueError(
                f"the classes of {shards[0].parent} are not named: write classes.txt beside the shards, one a line"
            )
        self.class_names, self.num_classes = class_names, len(class_names)
        with ThreadPoolExecutor(THREADS) as pool:
            counts = list(pool.map(count_records, shards))
        # With the counts in the file names, ArrayRecordDataSource does not open every file again.
        named = [f"{path}[0:{count}]" for path, count in zip(shards, counts, strict=True)]
        try:
            self._records = ArrayRecordDataSource(named)
        except (RuntimeError, ValueError) as error:  # a file name that it misinterprets
            raise ValueError(f"cannot read the shards in {shards[0].parent} ({reason(error)}): rename them") from error
        self._places = list(zip(shards, counts, strict=True))

    @property
    def shards(self) -> list[tuple[Path, int]]:
        return self._places

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int) -> tuple[bytes, int]:
        try:
            record: bytes = self._records[index]
        except RuntimeError as error:  # the checksum of the record does not match
            raise unreadable(self.name(index), error) from error
        return image_and_label(record, self.num_classes, lambda: self.name(index))


def count_records(path: Path) -> int:
    """Return the number of records in a shard.

    Raises:
        ValueError: If the shard is damaged or empty.
    """
    try:
        reader = ArrayRecordReader(str(path))
        count = reader.num_records()
        reader.close()
    except RuntimeError as error:
        raise ValueError(f"cannot read {path} ({reason(error)}): get another copy") from error
    if not count:  # truncated files report 0 as well
        raise ValueError(f"{path} is empty or truncated: get another copy")
    return count
