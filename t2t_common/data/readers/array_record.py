"""ArrayRecord shards: records with random access, each a `tf.train.Example` with `image` and `label`.

TFDS writes this format for its image data sets (`tfds build --file_format=array_record`), so its folders can be opened
directly; TensorFlow is not needed. Format of a record, in protobuf's terms (tensorflow/core/example/example.proto):
`features.feature["image"].bytes_list` holds one JPEG or PNG file, `["label"].int64_list` one number from 0. The class
names are in `classes.txt` (TFDS: `label.labels.txt`), one per line.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from t2t_common.data.images import UnreadableImageError
from t2t_common.data.readers.sources import EncodedSource, check_labels
from t2t_config.text import few, first_line, readable

THREADS = 16


class ArrayRecordSource(EncodedSource):
    """Images of ArrayRecord shards, in the order of the shards and of the records in them.

    Args:
        shards: ArrayRecord files; `group_size:1` makes random access fast.
        class_names: Class names by label.

    Raises:
        ValueError: If a shard is damaged, or the classes are not named.
    """

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
        """Shard files with their numbers of images."""
        return self._places

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int) -> tuple[bytes, int]:
        try:
            record: bytes = self._records[index]
            example = example_class().FromString(record)
        except (RuntimeError, DecodeError) as error:  # RuntimeError: the checksum of the record does not match
            raise UnreadableImageError(
                f"unreadable record {self.name(index)} ({reason(error)}): write it anew"
            ) from error
        feature = example.features.feature
        images: Sequence[bytes] = feature["image"].bytes_list.value if "image" in feature else ()
        labels: Sequence[int] = feature["label"].int64_list.value if "label" in feature else ()
        if len(images) != 1 or len(labels) != 1:
            names = few(sorted(feature))
            raise ValueError(f"{self.name(index)} has the features [{names}]: expected image (bytes) and label (int64)")
        check_labels(labels, self.num_classes, self.name(index))
        return images[0], labels[0]

    def name(self, index: int) -> str:
        for path, count in self._places:
            if index < count:
                return f"{path}[{index}]"
            index -= count
        raise IndexError(index)


def reason(error: Exception) -> str:
    """Return the first line of the message of `error`, for use in another message."""
    return readable(first_line(error), 200)


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


def encode_example(image: bytes, label: int) -> bytes:
    """Return one serialised record; deterministic."""
    example = example_class()()
    example.features.feature["image"].bytes_list.value.append(image)
    example.features.feature["label"].int64_list.value.append(label)
    return example.SerializeToString(deterministic=True)


@functools.cache
def example_class() -> Any:
    """Return the message class `tensorflow.Example`, in its own descriptor pool to avoid conflicts with TensorFlow."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tensorflow", syntax="proto3")

    def message(parent: Any, name: str, *fields: tuple[str, int, int, int, str | None]) -> Any:
        made = parent.add(name=name)
        for label, number, kind, repeated, of in fields:
            made.field.add(name=label, number=number, type=kind, label=repeated, type_name=of)
        return made

    one, many = field.LABEL_OPTIONAL, field.LABEL_REPEATED
    message(file.message_type, "BytesList", ("value", 1, field.TYPE_BYTES, many, None))
    message(file.message_type, "FloatList", ("value", 1, field.TYPE_FLOAT, many, None))
    message(file.message_type, "Int64List", ("value", 1, field.TYPE_INT64, many, None))
    kinds = enumerate(("bytes_list", "float_list", "int64_list"), start=1)
    lists = ("BytesList", "FloatList", "Int64List")
    feature = message(
        file.message_type,
        "Feature",
        *((kind, n, field.TYPE_MESSAGE, one, f".tensorflow.{lists[n - 1]}") for n, kind in kinds),
    )
    feature.oneof_decl.add(name="kind")
    for entry in feature.field:
        entry.oneof_index = 0
    entry_type = ".tensorflow.Features.FeatureEntry"
    features = message(file.message_type, "Features", ("feature", 1, field.TYPE_MESSAGE, many, entry_type))
    pair = message(
        features.nested_type,
        "FeatureEntry",
        ("key", 1, field.TYPE_STRING, one, None),
        ("value", 2, field.TYPE_MESSAGE, one, ".tensorflow.Feature"),
    )
    pair.options.map_entry = True
    message(file.message_type, "Example", ("features", 1, field.TYPE_MESSAGE, one, ".tensorflow.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))
