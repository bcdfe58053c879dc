"""Writing of shards from any source: tar in WebDataset's layout, or ArrayRecord, as read by `open_source`."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from array_record.python.array_record_module import ArrayRecordWriter

from t2t_common.data.readers.shards import CLASS_FILES
from t2t_common.data.readers.sources import EncodedSource, Source, Split
from t2t_common.data.readers.tf_example import encode_example
from t2t_common.io.terminal import bar

Format = Literal["tar", "arrayrecord"]

Record = tuple[str, bytes, int]
"""(key, image file, label)."""


def write_shards(sources: Mapping[Split, Source], folder: Path, kind: Format, *, images_per_shard: int) -> int:
    """Write all images of `sources` to `folder`; return their number.

    Files: `train-000000.tar`, or `train-00000-of-00010.array_record`, likewise `val`; `classes.txt`. Image files are
    copied byte for byte, images in memory are saved as PNG. The output is deterministic. Everything is written to a
    temporary folder beside `folder` and then renamed, so `folder` is either complete or absent.

    Raises:
        ValueError: If `folder` exists, or cannot be written.
        FileNotFoundError: If its parent folder does not exist.
    """
    folder = folder.absolute()
    if folder.exists():
        raise ValueError(f"{folder} exists: choose another folder, or delete it")
    if not folder.parent.is_dir():
        raise FileNotFoundError(f"cannot write {folder}: create the folder {folder.parent} first")
    if images_per_shard < 1:
        raise ValueError(f"images_per_shard must be at least 1, got {images_per_shard}")
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
            new = Path(scratch, "new")
            new.mkdir()
            for split, source in sources.items():
                _write_split(source, new, split, kind, images_per_shard)
            _write_classes(sources, new / CLASS_FILES[0])
            new.rename(folder)
    except OSError as error:
        raise ValueError(f"cannot write {folder} ({error.strerror or error}): free space, or choose another") from error
    return sum(map(len, sources.values()))


def _write_classes(sources: Mapping[Split, Source], path: Path) -> None:
    largest = max(sources.values(), key=lambda source: source.num_classes)
    names = largest.class_names or [str(label) for label in range(largest.num_classes)]
    path.write_text("\n".join(names) + "\n", encoding="utf-8")


def _write_split(source: Source, folder: Path, split: Split, kind: Format, images_per_shard: int) -> None:
    shards = -(-len(source) // images_per_shard)
    numbers = bar(range(len(source)), f"writing {split}", len(source))
    records = (_record(source, index) for index in numbers)
    for shard in range(shards):
        count = min(images_per_shard, len(source) - shard * images_per_shard)
        if kind == "tar":
            path = folder / f"{split}-{shard:06d}.tar"
            _write_tar(path, records, count)
        else:
            path = folder / f"{split}-{shard:05d}-of-{shards:05d}.array_record"
            _write_records(path, records, count)
        with path.open("rb+") as file:
            os.fsync(file.fileno())  # otherwise a power failure could leave the name without the content


def _record(source: Source, index: int) -> Record:
    """Return an image file as stored, or a PNG; its key is its index in the split."""
    if isinstance(source, EncodedSource):
        return f"{index:08d}", *source.read(index)
    image, label = source[index]
    data = io.BytesIO()
    image.save(data, "PNG")
    return f"{index:08d}", data.getvalue(), label


def _write_tar(path: Path, records: Iterator[Record], count: int) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for _ in range(count):
            key, data, label = next(records)
            suffix = _suffix(data)
            for name, content in ((f"{key}.{suffix}", data), (f"{key}.cls", str(label).encode())):
                member = tarfile.TarInfo(name)  # time, owner and mode are tarfile's defaults
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


SIGNATURES = {
    **{b"\x89PNG": "png", b"RIFF": "webp", b"BM": "bmp", b"GIF8": "gif"},
    **{b"II*": "tif", b"MM": "tif", b"P": "ppm"},
}
"""Signatures at the start of image files, besides JPEG."""


def _suffix(data: bytes) -> str:
    """Return the suffix for the content of an image file; names are unreliable: ImageNet has a PNG called .JPEG."""
    return next((suffix for start, suffix in SIGNATURES.items() if data.startswith(start)), "jpg")


def _write_records(path: Path, records: Iterator[Record], count: int) -> None:
    # One record per group makes random access fast; image files would not benefit from compression.
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    with contextlib.closing(writer):
        for _ in range(count):
            _, data, label = next(records)
            writer.write(encode_example(data, label))
