"""Image sources: each returns (PIL image, label) by index and knows its number of classes."""

from __future__ import annotations

import abc
import copy
import io
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import numpy as np
from PIL import Image

from t2t_common.data.images import decode_image
from t2t_common.data.readers.image_files import IMAGE_SUFFIXES, as_text, find_images_below
from t2t_config.text import escaped

Split = Literal["train", "val"]

SHOWN = 12
"""Maximum number of classes listed by name."""


class Source(Protocol):
    """Random access to labelled images; `class_names` is None if the data has no class names."""

    num_classes: int
    class_names: list[str] | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, int]: ...


class ArraySource:
    """Images in memory: uint8, (N, H, W) gray or (N, H, W, 3) RGB; labels (N,)."""

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
    """Images in files, one per file or many per shard, read on access from any thread or process."""

    num_classes: int
    class_names: list[str] | None
    notes: Sequence[str] = ()
    """Notes for the user: the order of the classes, files that were skipped."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def read(self, index: int) -> tuple[bytes, int]:
        """Return the image file as stored, and its label.

        Raises:
            ValueError: If it cannot be read.
        """

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """Return the file name and, for a shard, the position of the image in it."""

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Return image and label; raise UnreadableImageError if the image is damaged, ValueError if the file is
        unreadable."""
        data, label = self.read(index)
        return decode_image(io.BytesIO(data), lambda: self.name(index)), label


class ShardSource(EncodedSource):
    """Images of shards that are read by a library, which finds them by a directory at the end of each shard.

    Attributes:
        kind: Description of the shards, in words.
    """

    kind: ClassVar[str]

    @property
    @abc.abstractmethod
    def shards(self) -> list[tuple[Path, int]]:
        """Shard files with their numbers of images."""

    def name(self, index: int) -> str:
        for path, count in self.shards:
            if index < count:
                return f"{path}[{index}]"
            index -= count
        raise IndexError(index)


class FolderSource(EncodedSource):
    """Images in folders, one folder per class; classes are numbered in the order of `classes`.

    Attributes:
        empty: Names of the class folders without images.
        absent: Names of the classes without a folder.
        skipped: Counts of the other files in the class folders (see image_files.py).
    """

    def __init__(self, root: Path, classes: Sequence[str], class_names: Sequence[str] | None = None) -> None:
        """
        Args:
            root: Folder that contains the class folders.
            classes: Names of the class folders.
            class_names: Names of the classes; None uses the folder names, with unprintable characters escaped.

        Raises:
            ValueError: If there are no images, or two folders have the same escaped name.
        """
        self.num_classes, self._root = len(classes), root
        self.class_names = [escaped(name) for name in classes] if class_names is None else list(class_names)
        if len(set(self.class_names)) < len(classes):
            alike = next(name for name in self.class_names if self.class_names.count(name) > 1)
            raise ValueError(f"{root} has two class folders that are shown as {alike}: rename one")
        self._files: list[tuple[Path, int]] = []
        self.skipped: Counter[str] = Counter()
        self.empty: list[str] = []
        self.absent: list[str] = []
        for label, (folder, name) in enumerate(zip(classes, self.class_names, strict=True)):
            if not (root / folder).is_dir():
                self.absent.append(name)
                continue
            files, skipped = find_images_below(root / folder)
            self._files += [(path, label) for path in files]
            self.skipped += skipped
            if not files:
                self.empty.append(name)
        if not self._files:
            there = f", only {as_text(self.skipped)}" if self.skipped else ""
            suffixes = ", ".join(IMAGE_SUFFIXES)
            raise ValueError(f"no images in {root}{there}: expected folders of {suffixes} files, one folder per class")

    def reordered(self, class_names: Sequence[str]) -> FolderSource:
        """Return the same images, with classes renumbered and images sorted in the order of `class_names`, a
        permutation."""
        place = {name: label for label, name in enumerate(class_names)}
        new = [place[name] for name in self.class_names or ()]
        found = copy.copy(self)
        found.class_names = list(class_names)
        found._files = sorted(((path, new[label]) for path, label in self._files), key=lambda file: file[1])
        return found

    def selected(self, is_wanted: Callable[[str], bool]) -> FolderSource:
        """Return the images whose path relative to `root`, with slashes, `is_wanted` accepts; the classes stay."""
        found = copy.copy(self)
        found._files = [file for file in self._files if is_wanted(file[0].relative_to(self._root).as_posix())]
        return found

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
        """Classes that have at least one image."""
        return {label for _, label in self._files}

    def path(self, index: int) -> Path:
        """Return the path of an image file."""
        return self._files[index][0]

    def relative_path(self, index: int) -> Path:
        """Return the path CLASS/NAME.jpg, relative to `root`."""
        return self._files[index][0].relative_to(self._root)


def notes_of(*sources: Source) -> list[str]:
    """Return the `notes` of all sources that have them, without duplicates."""
    return list(dict.fromkeys(note for source in sources for note in getattr(source, "notes", ())))


def in_words(class_names: Sequence[str]) -> str:
    """Describe the class numbers: "0 cat, 1 dog"; long lists are shortened to the first ones and the last."""
    listed = [f"{number} {escaped(name)}" for number, name in enumerate(class_names)]
    return ", ".join(listed if len(listed) <= SHOWN else [*listed[: SHOWN - 1], "...", listed[-1]])


def check_labels(labels: Iterable[int], num_classes: int, where: str) -> None:
    """Raise ValueError if a label is out of range: below 0, or not below `num_classes`."""
    for label in labels:
        if not 0 <= label < num_classes:
            raise ValueError(f"{where} has label {label}, beyond the classes 0..{num_classes - 1}: correct one of them")
