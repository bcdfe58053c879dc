"""Readers of IDX (the MNIST family, yann.lecun.com/exdb/mnist) and of CIFAR, in its binary and its Python version."""

from __future__ import annotations

import gzip
import io
import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from t2t_common.io.array_pickle import read_arrays
from t2t_config.text import escaped

CIFAR_SIDE = 32
PIXELS = 3 * CIFAR_SIDE**2
CIFAR_TESTS: Mapping[Literal[10, 100], str] = {10: "test_batch.bin", 100: "test.bin"}
"""File name of the test images by number of classes, in the binary version."""
CIFAR_PICKLES: Mapping[Literal[10, 100], tuple[str, str]] = {10: ("test_batch", "batches.meta"), 100: ("test", "meta")}
"""Likewise in the Python version, with the file of the class names."""

MOST_PACKED = 100
"""Maximum compression ratio of a gzipped file that unpacks to more than `ALWAYS` bytes; MNIST's images have 5."""
ALWAYS = 1 << 26
"""Unpacked size in bytes that is allowed at any compression ratio: sorted labels compress a thousandfold."""

MOST_AXES = 8


def read_idx_pair(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Return images (N, H, W), labels (N,) and number of classes of an MNIST-like folder.

    Args:
        folder: Folder with `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-...`, each optionally with the
            suffix .gz.
        split: "train", or "val" for the t10k files.

    Raises:
        ValueError: If a file is missing or truncated, or the two do not match.
    """
    prefix = "train" if split == "train" else "t10k"
    folder = idx_folder(folder) or folder
    image_file, label_file = (_idx_file(folder, f"{prefix}-{kind}") for kind in ("images", "labels"))
    images, labels = read_idx(image_file), read_idx(label_file)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise ValueError(
            f"{image_file} {images.shape} and {label_file} {labels.shape} do not belong "
            "together: expected (N, H, W) and (N,)"
        )
    if 0 in images.shape[1:]:
        raise ValueError(f"the images in {image_file} are {images.shape[1]}x{images.shape[2]}: get another copy of it")
    known = [read_idx(path) for path in _files(folder, "*labels*idx1*")]
    return images, labels.astype(np.int32), 1 + max(int(values.max(initial=0)) for values in known)


def idx_folder(root: Path) -> Path | None:
    """Return `root` or its folder `raw` (torchvision's layout) if it contains IDX image files, else None."""
    return next((folder for folder in (root, root / "raw") if _files(folder, "*images*idx3*")), None)


def _files(folder: Path, pattern: str) -> list[Path]:
    """Return the files that match `pattern`, sorted; in a folder of that name (as in some archives), the file of its
    name."""
    found = sorted(folder.glob(pattern))
    inner = [path / path.name for path in found if path.is_dir()]
    return [path for path in found if path.is_file()] or [path for path in inner if path.is_file()]


def _idx_file(folder: Path, name: str) -> Path:
    found = _files(folder, f"{name}*")
    if not found:
        raise ValueError(f"no {name}-* file in {folder}: all four IDX files are needed, .gz or not")
    return found[0]


def read_idx(path: Path) -> np.ndarray:
    """Read the uint8 array of one IDX file, gzipped or not.

    Raises:
        ValueError: If the file is truncated, or is not an IDX file of bytes.
    """
    data = path.read_bytes()
    data = unpacked(path, data) if data[:2] == b"\x1f\x8b" else data
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is not an IDX file of bytes (it begins with {data[:4].hex()!r}): get another copy")
    if data[3] > MOST_AXES:
        raise ValueError(f"{path} is damaged: it would have {data[3]} axes: get another copy")
    start = 4 + 4 * data[3]
    shape = struct.unpack(f">{data[3]}I", data[4:start].ljust(4 * data[3], b"\0"))
    if len(data) - start != math.prod(shape):
        raise ValueError(
            f"{path} is truncated or damaged: {len(data)} bytes do not hold an array of shape {shape}: get another copy"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def unpacked(path: Path, data: bytes) -> bytes:
    """Return the content of a gzipped file; raise ValueError for a decompression bomb."""
    limit = max(ALWAYS, MOST_PACKED * len(data))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            content = file.read(limit + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}): get another copy") from error
    if len(content) > limit:
        raise ValueError(f"{path} unpacks to more than {limit:,} bytes, so it is refused")
    return content


def has_cifar(folder: Path, classes: Literal[10, 100]) -> bool:
    """Return whether `folder` has either version of CIFAR-10 or CIFAR-100."""
    is_binary = (folder / CIFAR_TESTS[classes]).is_file()
    return is_binary or all((folder / name).is_file() for name in CIFAR_PICKLES[classes])


def read_cifar(
    folder: Path, classes: Literal[10, 100], split: str
) -> tuple[np.ndarray, np.ndarray, int, list[str] | None]:
    """Return images (N, 32, 32, 3), labels (N,), number and names of classes of CIFAR-10 or CIFAR-100 (fine labels).

    Args:
        folder: Folder with `data_batch_1.bin` ... `test_batch.bin`, or `train.bin` and `test.bin`; or, without `.bin`,
            the pickles of the Python version, of which alone the class names are read.
        classes: 10 or 100, the data set to read.
        split: "train" or "val" (the test images).

    Raises:
        ValueError: If a file is missing or truncated, or a label is out of range.
    """
    is_binary = (folder / CIFAR_TESTS[classes]).is_file()
    test = CIFAR_TESTS[classes] if is_binary else CIFAR_PICKLES[classes][0]
    suffix = ".bin" if is_binary else ""
    train = [f"train{suffix}"] if classes == 100 else [f"data_batch_{i}{suffix}" for i in range(1, 6)]
    names = [test] if split == "val" else train
    parts = []
    for path in (folder / name for name in names):
        if not path.is_file():
            raise ValueError(f"no {path.name} in {folder}: this version of CIFAR has {', '.join(names)}")
        pixels, labels = _binary_batch(path, classes) if is_binary else _pickled_batch(path, classes)
        least, most = int(labels.min()), int(labels.max())
        if least < 0 or most >= classes:
            raise ValueError(
                f"{path} has label {least if least < 0 else most}, beyond 0..{classes - 1}: get another copy"
            )
        parts.append((pixels, labels))
    pixels, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    images = pixels.reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE).transpose(0, 2, 3, 1)
    class_names = None if is_binary else _pickled_names(folder / CIFAR_PICKLES[classes][1], classes)
    return np.ascontiguousarray(images), labels.astype(np.int32), classes, class_names


def _binary_batch(path: Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels (N, 3072) and labels (N,) of a file of the binary version."""
    label_bytes = 2 if classes == 100 else 1
    record = label_bytes + PIXELS
    data = np.fromfile(path, np.uint8)
    if not len(data) or len(data) % record:
        raise ValueError(f"{path} is truncated: {len(data)} bytes are not a multiple of {record}: get another copy")
    records = data.reshape(-1, record)
    return records[:, label_bytes:], records[:, label_bytes - 1]


def _pickled_batch(path: Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the same of a file of the Python version."""
    found = read_arrays(path)
    pixels, labels = found.get("data"), found.get("fine_labels" if classes == 100 else "labels")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (PIXELS,):
        raise ValueError(f"{path} has no images: expected data, uint8 (N, {PIXELS}): get another copy")
    is_list = isinstance(labels, list) and all(type(label) is int and abs(label) < 1 << 31 for label in labels)
    if not labels or not is_list or len(labels) != len(pixels):
        raise ValueError(f"{path} has no list of {len(pixels)} labels: get another copy")
    return pixels, np.array(labels)


def _pickled_names(path: Path, classes: int) -> list[str]:
    names = read_arrays(path).get("fine_label_names" if classes == 100 else "label_names")
    if not isinstance(names, list) or len(names) != classes or not all(isinstance(name, bytes | str) for name in names):
        raise ValueError(f"{path} has no list of {classes} class names: get another copy")
    return [escaped(name.decode("utf-8", "replace") if isinstance(name, bytes) else name) for name in names]
