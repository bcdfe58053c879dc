"""`tf.train.Example` messages with one image and its label, the records of TFDS, read without TensorFlow.

In protobuf's terms (tensorflow/core/example/example.proto), `features.feature["image"].bytes_list` holds one JPEG or
PNG file, `["label"].int64_list` one number from 0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from t2t_common.data.images import UnreadableImageError
from t2t_common.data.readers.sources import check_labels
from t2t_config.text import few, first_line, readable


def image_and_label(
    record: bytes, num_classes: int, name: Callable[[], str], keys: tuple[str, str] = ("image", "label")
) -> tuple[bytes, int]:
    """Return image file and label of a record.

    Args:
        record: Serialised message.
        num_classes: Number of classes.
        name: Returns the name of the record, for messages.
        keys: Names of the two features.

    Raises:
        UnreadableImageError: If the record is no message.
        ValueError: If it lacks a feature, or the label is out of range.
    """
    try:
        feature = example_class().FromString(record).features.feature
    except DecodeError as error:
        raise unreadable(name(), error) from error
    image, label = keys
    images: Sequence[bytes] = feature[image].bytes_list.value if image in feature else ()
    labels: Sequence[int] = feature[label].int64_list.value if label in feature else ()
    if len(images) != 1 or len(labels) != 1:
        names = readable(few(sorted(feature)), 300)
        raise ValueError(f"{name()} has the features [{names}]: expected {image} (bytes) and {label} (int64)")
    check_labels(labels, num_classes, name())
    return images[0], labels[0]


def unreadable(name: str, error: Exception) -> UnreadableImageError:
    """Return the error for a damaged record."""
    return UnreadableImageError(f"unreadable record {name} ({reason(error)}): write it anew")


def reason(error: Exception) -> str:
    """Return the first line of the message of `error`, for use in another message."""
    return readable(first_line(error), 200)


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
