"""Where images come from: each source gives (PIL image, label) by index and knows its number of classes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from t2t_common.images import image_files, open_image
from t2t_jax.data.binary import read_cifar, read_idx_pair

Split = Literal["train", "val"]

HELD_OUT_PER_DIGIT = 36


class Source(Protocol):
    """Random access to labelled images; `class_names` where the data tell them."""

    num_classes: int
    class_names: list[str] | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, int]: ...


class ArraySource:
    """Images held in memory: uint8, (N, H, W) gray or (N, H, W, 3) RGB; labels (N,)."""

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, num_classes: int, class_names: list[str] | None = None
    ) -> None:
        self._images, self._labels = images, labels
        self.num_classes, self.class_names = num_classes, class_names

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self._images[index]), int(self._labels[index])


class FolderSource:
    """Images in folders, one folder per class; classes are numbered in the order of `classes`."""

    def __init__(self, root: Path, classes: list[str]) -> None:
        self.num_classes = len(classes)
        self.class_names: list[str] | None = classes
        self._files = [(path, label) for label, name in enumerate(classes) for path in image_files(root / name)]
        if not self._files:
            raise ValueError(f"no images in {root}: expected folders of .jpg or .png files, one folder per class")

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path, label = self._files[index]
        return open_image(path), label


def open_source(data: str | Path, split: Split) -> Source:
    """The images of `split` in `data`, whose kind shows in what the folder contains.

    Args:
        data: "digits", or a folder with ImageFolder trees `train/CLASS/*.jpg` and `val/CLASS/*.jpg`, with the
            IDX files of the MNIST family (also gzipped), or with the binary version of CIFAR-10 or CIFAR-100.
            For "val" a folder of class folders will do.
        split: "train" or "val" (the test images of digits, IDX and CIFAR).

    Raises:
        FileNotFoundError: no such folder.
        ValueError: nothing to read in it, or a damaged file; the message names it.
    """
    if str(data) == "digits":
        return _digits(split)
    root = Path(data)
    if not root.is_dir():
        raise FileNotFoundError(f'no data folder {root}: check the path, or use "digits"')
    if any(root.glob("*images*idx3*")):
        return ArraySource(*read_idx_pair(root, split))
    for folder in (root, *sorted(root.glob("cifar-*"))):
        if (folder / "test_batch.bin").is_file() or (folder / "test.bin").is_file():
            return ArraySource(*read_cifar(folder, split))
    return _image_folder(root, split)


def check_classes(source: Source, num_classes: int) -> None:
    """Raises ValueError if `source` has labels that a head of `num_classes` lacks."""
    if source.num_classes > num_classes:
        raise ValueError(
            f"the data has {source.num_classes} classes, the model {num_classes}: set --num-classes "
            f"{source.num_classes}"
        )


def _digits(split: Split) -> ArraySource:
    """scikit-learn's handwritten digits, (8, 8) with 17 grays; always the same 36 of each digit are held out."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ValueError(f"the digits come with scikit-learn ({error}): pip install scikit-learn") from error
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    shuffled = np.random.RandomState(0).permutation(len(images))
    held_out = np.concatenate([shuffled[digits.target[shuffled] == digit][:HELD_OUT_PER_DIGIT] for digit in range(10)])
    chosen = np.isin(np.arange(len(images)), held_out, invert=split == "train")
    return ArraySource(images[chosen], digits.target[chosen].astype(np.int32), 10, list("0123456789"))


def _image_folder(root: Path, split: Split) -> FolderSource:
    folder = root / split
    if not folder.is_dir():
        if split == "train" or (root / "train").is_dir():
            raise ValueError(
                f"no folder {folder}: expected train/CLASS/*.jpg and val/CLASS/*.jpg (or .png), IDX files or "
                "CIFAR binary files"
            )
        folder = root
    classes = _class_names(root / "train" if (root / "train").is_dir() else folder)
    strangers = [name for name in _class_names(folder) if name not in set(classes)]
    if strangers:
        raise ValueError(f"{folder} has classes that {root / 'train'} lacks: {', '.join(strangers[:5])}")
    return FolderSource(folder, classes)


def _class_names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
