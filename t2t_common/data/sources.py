"""Where images come from: each source gives (PIL image, label) by index and knows its number of classes."""

from __future__ import annotations

import abc
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from t2t_common.images import decode_image, image_files

Split = Literal["train", "val"]


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

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels."""
        return self._images, self._labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self._images[index]), int(self._labels[index])


class EncodedSource(abc.ABC):
    """Images in files, one in each or many in a shard; read when asked for, from any thread or process."""

    num_classes: int
    class_names: list[str] | None

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def read(self, index: int) -> tuple[bytes, int]:
        """The image file, as it is stored, and its label.

        Raises:
            ValueError: it cannot be read.
        """

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """The file and, in a shard, the image in it."""

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Raises UnreadableImageError for a damaged image, ValueError for a file that cannot be read."""
        data, label = self.read(index)
        return decode_image(io.BytesIO(data), lambda: self.name(index)), label


class FolderSource(EncodedSource):
    """Images in folders, one folder per class; classes are numbered in the order of `classes`."""

    def __init__(self, root: Path, classes: list[str]) -> None:
        self.num_classes, self.class_names, self._root = len(classes), classes, root
        self._files = [(path, label) for label, name in enumerate(classes) for path in image_files(root / name)]
        if not self._files:
            raise ValueError(f"no images in {root}: expected folders of .jpg or .png files, one folder per class")

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int) -> tuple[bytes, int]:
        path, label = self._files[index]
        try:
            return path.read_bytes(), label
        except OSError as error:
            raise ValueError(f"cannot read {path} ({error.strerror or error}): check the disk") from error

    def name(self, index: int) -> str:
        return str(self._files[index][0])

    @property
    def labels(self) -> set[int]:
        """Classes that have an image."""
        return {label for _, label in self._files}

    def path(self, index: int) -> Path:
        """The file."""
        return self._files[index][0]

    def relative_path(self, index: int) -> Path:
        """CLASS/NAME.jpg, within `root`."""
        return self._files[index][0].relative_to(self._root)


def check_labels(labels: Iterable[int], num_classes: int, where: str) -> None:
    """Raises ValueError if a label is no class: below 0, or not below `num_classes`."""
    for label in labels:
        if not 0 <= label < num_classes:
            raise ValueError(f"{where} has label {label}, beyond the classes 0..{num_classes - 1}: correct one of them")
