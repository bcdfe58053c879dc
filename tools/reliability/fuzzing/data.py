"""Readers of data sets and of single images."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import struct
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from t2t_common.data.augment.transforms import training_image
from t2t_common.data.images import find_images, open_image
from t2t_common.data.preprocess import Preprocess, evaluation_image
from t2t_common.data.readers.formats import open_source
from t2t_common.data.readers.indexed import _read_index
from t2t_common.data.readers.shards import read_class_names
from t2t_common.data.readers.sources import notes_of
from t2t_common.data.readers.tar import INDEX_VERSION, TarIndex, TarSource, index_shard
from t2t_common.data.readers.tf_example import encode_example
from t2t_config import Recipe
from t2t_config.class_names import class_names
from tools.reliability.fuzzing.formats import damaged_gzip, damaged_png, damaged_tar, damaged_zip
from tools.reliability.fuzzing.mutate import Link, Tree, damaged, damaged_json, damaged_tree
from tools.reliability.fuzzing.reader import Reader
from tools.reliability.fuzzing.weights import by_suffix, made

LARGEST_IMAGE = 800
"""Megabytes: 89 million pixels, as they are stored and as RGB."""
MOST_IMAGES = 8
"""That are read of each data set."""


def read_all(folder: Path) -> None:
    """Both splits of a data set, and the images in them as evaluation and training see them.

    Raises:
        ValueError, OSError: the first that something raised, when everything else has been read.
    """
    recipe = Recipe("t2t_vit_micro", img_size=16, in_chans=3)
    how = Preprocess.of_recipe(recipe)
    errors: list[Exception] = []
    for split in ("train", "val"):
        try:
            source = open_source(folder, split)  # type: ignore[arg-type]
        except (ValueError, OSError) as error:
            errors.append(error)
            continue
        shown = [*(source.class_names or ()), *notes_of(source)]
        assert all(text.isprintable() for text in shown), shown
        for index in range(min(len(source), MOST_IMAGES)):
            try:
                image, label = source[index]
                assert 0 <= label < source.num_classes, (label, source.num_classes)
                evaluation_image(image, how)
                training_image(image, how, recipe, np.random.default_rng(0))
            except (ValueError, OSError) as error:
                errors.append(error)
    if errors:
        raise errors[0]


def encoded(kind: str, size: tuple[int, int] = (9, 7), mode: str = "RGB", **options: Any) -> bytes:
    """A small image as a file."""
    file = io.BytesIO()
    image = Image.effect_noise(size, 90).convert(mode)
    image.save(file, kind, **options)
    return file.getvalue()


# --- Arrays in files ----------------------------------------------------------------------------------------


def idx() -> Reader:
    def samples() -> Sequence[Tree]:
        def packed(array: np.ndarray) -> bytes:
            return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()

        tree: Tree = {}
        for prefix, count in (("train", 6), ("t10k", 3)):
            tree[f"{prefix}-images-idx3-ubyte"] = packed(np.arange(count * 30).reshape(count, 6, 5))
            tree[f"{prefix}-labels-idx1-ubyte"] = packed(np.arange(count) % 3)
        return [
            tree,
            {
                f"{name}.gz": gzip.compress(content, mtime=0)
                for name, content in tree.items()
                if isinstance(content, bytes)
            },
        ]

    return Reader(samples, by_suffix({".gz": damaged_gzip(damaged)}), read_all)


def cifar() -> Reader:
    def samples() -> Sequence[Tree]:
        draws = Random(0)
        ten = {f"data_batch_{i}.bin": bytes([i]) + draws.randbytes(3072) for i in range(1, 6)}
        hundred = {f"{name}.bin": bytes([3, 40]) + draws.randbytes(3072) for name in ("train", "test")}
        return [{**ten, "test_batch.bin": bytes([9]) + draws.randbytes(3072)}, dict(hundred)]

    return Reader(samples, damaged_tree, read_all)


# --- Shards -------------------------------------------------------------------------------------------------


def tar() -> Reader:
    def samples() -> Sequence[Tree]:
        def packed(json_labels: bool) -> bytes:
            file = io.BytesIO()
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for i in range(3):
                    label = (f"{i:04d}.json", b'{"label": %d}' % i) if json_labels else (f"{i:04d}.cls", b"%d" % i)
                    for name, content in ((f"{i:04d}.png", encoded("PNG")), label):
                        member = tarfile.TarInfo(name)
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
            return file.getvalue()

        return [
            {"train-000000.tar": packed(False), "val-000000.tar": packed(False), "classes.txt": b"a\nb\nc\n"},
            {"train-00000-of-00001.tar": packed(True), "validation-0.tar": packed(True)},
        ]

    def change(tree: Tree, rng: Random) -> Tree:
        if rng.random() < 0.06:
            return _other_shard_name(tree, rng)
        return by_suffix({".tar": damaged_tar})(tree, rng)

    return Reader(samples, change, read_all, writes=("cache/tar-index*",))


def tar_whole() -> Reader:
    """Shards that are cut off, or have one bit flipped: all their images are there, or the shard is refused."""

    def change(tree: Tree, rng: Random) -> Tree:
        shard = tree["train-000000.tar"]
        assert isinstance(shard, bytes)
        if rng.random() < 0.5:
            cut = 512 * rng.randrange(len(shard) // 512) if rng.random() < 0.7 else rng.randrange(len(shard))
            return {**tree, "train-000000.tar": shard[:cut]}
        place = rng.randrange(len(shard))
        flipped = bytes([shard[place] ^ 1 << rng.randrange(8)])
        return {**tree, "train-000000.tar": shard[:place] + flipped + shard[place + 1 :]}

    def read(folder: Path) -> None:
        source = open_source(folder, "train")
        assert len(source) == 3, f"{len(source)} of 3 images"

    return Reader(lambda: [tar().trees[0]], change, read, writes=("cache/tar-index*",))


def _other_shard_name(tree: Tree, rng: Random) -> Tree:
    name = rng.choice([name for name in tree if name.startswith("train")])
    number = rng.choice(("9" * 10, "9" * 19, "9" * 100, "0", "00002", "\u0663"))
    other = rng.choice(
        (f"train-00000-of-{number}", f"train-{number}-of-00001", f"train-[0:{number}]", "train-\n", "train-\x1b[0m")
    )
    end = ".array_record" if "array_record" in name else ".tar"
    return {(other + end if path == name else path): content for path, content in tree.items()}


def tar_index() -> Reader:
    """What is kept of the headers of shards; a damaged one is made anew."""

    def samples() -> Sequence[Tree]:
        shard = tar().trees[0]["train-000000.tar"]
        assert isinstance(shard, bytes)
        return [{"index.npz": _index_of(shard), "train-000000.tar": shard}]

    def read(folder: Path) -> None:
        shard = folder / "train-000000.tar"
        os.utime(shard, ns=(0, 0))
        kept = hashlib.sha256(json.dumps([str(shard.absolute())]).encode()).hexdigest()[:32]
        place = Path(os.environ["T2T_CACHE"]) / "tar-index" / f"{kept}.npz"
        place.parent.mkdir()
        (folder / "index.npz").rename(place)
        source = TarSource([shard])
        assert len(source) == 3
        for index in range(3):
            source[index]

    def change(tree: Tree, rng: Random) -> Tree:
        index = tree["index.npz"]
        assert isinstance(index, bytes)
        return {**tree, "index.npz": _damaged_npz(index, rng)}

    return Reader(samples, change, read, writes=("cache/tar-index*", "index.npz", "train-000000.tar"))


def _index_of(shard: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "train-000000.tar")
        path.write_bytes(shard)
        file = io.BytesIO()
        stamp = np.array([(len(shard), 0)], np.int64)
        np.savez(file, version=INDEX_VERSION, stamp=stamp, **_read_index(TarIndex, [path], index_shard)._asdict())
        return file.getvalue()


def _damaged_npz(data: bytes, rng: Random) -> bytes:
    return damaged(data, rng) if rng.random() < 0.5 else damaged_zip(damaged)(data, rng)


def array_record() -> Reader:
    def samples() -> Sequence[Tree]:
        return [_records([encode_example(encoded("PNG"), label) for label in range(3)])]

    def change(tree: Tree, rng: Random) -> Tree:
        if rng.random() < 0.06:
            return _other_shard_name(tree, rng)
        if rng.random() < 0.5:
            return damaged_tree(tree, rng)
        records = [encode_example(encoded("PNG"), label) for label in range(3)]
        place = rng.randrange(3)
        records[place] = rng.choice(
            (damaged(records[place], rng), encode_example(b"", 2**62), encode_example(b"x", -1), b"")
        )
        return _records(records)

    return Reader(samples, change, read_all, megabytes=512)


def _records(records: Sequence[bytes]) -> Tree:
    def write(folder: Path) -> None:
        for split in ("train", "val"):
            path = folder / f"{split}-00000-of-00001.array_record"
            writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
            for record in records:
                writer.write(record)
            writer.close()

    return {**made(write), "classes.txt": b"a\nb\nc\n"}


def class_files() -> Reader:
    """Names of classes beside shards, and those that the command lines are given."""

    def read(folder: Path) -> None:
        for name in ("names.txt", "names.json", "index.json"):
            class_names(3, file=folder / name)
        read_class_names(folder)

    tree: Tree = {
        "classes.txt": b"a\nb\nc\n",
        "names.txt": b"cat\ndog\nn01440764\n",
        "names.json": b'["cat", "dog", "cow"]',
        "index.json": b'{"0": "cat", "1": "dog", "2": "cow"}',
    }
    return Reader(lambda: [tree], by_suffix({".json": damaged_json}), read)


# --- Image files --------------------------------------------------------------------------------------------


def image_folder() -> Reader:
    def samples() -> Sequence[Tree]:
        return [{"train/a/1.jpg": encoded("JPEG"), "train/b/2.png": encoded("PNG"), "val/a/3.jpeg": encoded("JPEG")}]

    def change(tree: Tree, rng: Random) -> Tree:
        if rng.random() < 0.05:
            name = rng.choice(
                (
                    *("train/\x1b[31m\x07/1.jpg", "train/a\nb/1.jpg", "val/\u00b2/1.png", "train/.hidden/1.jpg"),
                    *("val/c/1.jpg", "train/caf\udce9/1.jpg", "train/\u202eb/1.jpg", "train/<script>/bad[copy].jpg"),
                    *("train/a/x.\x1b[2J", "train/__MACOSX/._1.jpg", "train/10/1.webp", "test/a/1.jpg"),
                )
            )
            return {**tree, name: encoded("JPEG")}
        if rng.random() < 0.05:
            link = rng.choice((Link("."), Link(".."), Link("../.."), Link("../b"), Link("loop"), Link("nowhere")))
            return {**tree, "train/a/loop": link}
        if rng.random() < 0.05:
            lines = rng.choice((b"b\na\n", b"a\n", b"a\nb\nc\n", b"a x\nb y\n", b"\xff\n", b"a\n\nb\n", b"b\x1b\na\n"))
            return {**tree, "classes.txt": lines}
        return by_suffix({".png": damaged_png})(tree, rng)

    return Reader(samples, change, read_all, megabytes=LARGEST_IMAGE)


def image_files() -> Reader:
    """Single images of any format, as the command line predicts them."""

    def samples() -> Sequence[Tree]:
        kinds: Sequence[tuple[str, str]] = [
            *(("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P")),
            *(("PNG", "1"), ("GIF", "P"), ("BMP", "RGB"), ("TIFF", "RGB"), ("WEBP", "RGB"), ("PPM", "RGB")),
            *(("ICO", "RGBA"), ("EPS", "RGB"), ("SGI", "RGB"), ("TGA", "RGB"), ("PCX", "RGB"), ("PDF", "RGB")),
            *(("IM", "L"), ("MSP", "1"), ("JPEG2000", "RGB")),
        ]
        long = [encoded("PNG", size=size, mode="1") for size in ((1, 60_000), (60_000, 1))]
        large = [encoded("PNG", size=(9000, 9000), mode="1")]
        return [
            {"photo.jpg": content} for content in [*(encoded(kind, mode=mode) for kind, mode in kinds), *long, *large]
        ]

    def change(tree: Tree, rng: Random) -> Tree:
        if len(tree["photo.jpg"] or b"") > 1 << 20:  # type: ignore[arg-type]
            return change(samples_of(rng), rng)
        return damaged_tree(tree, rng, damaged_png)

    def samples_of(rng: Random) -> Tree:
        return {"photo.jpg": encoded(rng.choice(("JPEG", "PNG")))}

    def read(folder: Path) -> object:
        how = Preprocess(
            img_size=16, in_chans=3, mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=0.9, interpolation="bicubic"
        )
        (path,) = find_images([folder / "photo.jpg"])
        return evaluation_image(open_image(path), how)

    return Reader(samples, change, read, megabytes=LARGEST_IMAGE)
