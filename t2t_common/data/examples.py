"""Examples of a run by their number, with image and augmentation determined by one seed; reshuffled every epoch.

Examples do not depend on the caller, the order or the number of accesses: threads, workers, resuming and the framework
do not change them. Several processes share the work by rows: of every batch of B images, process p of P prepares rows p
B/P to (p + 1) B/P, so together they make the same batch as a single process.
"""

from __future__ import annotations

import functools
from typing import SupportsIndex

import numpy as np
from PIL import Image

from t2t_common.data.augment.transforms import training_image
from t2t_common.data.images import UnreadableImageError
from t2t_common.data.preprocess import Preprocess, evaluation_image
from t2t_common.data.readers.sources import Source
from t2t_common.data.token_labels import LabelMap, TokenLabelSource, labelled_example
from t2t_config import Recipe

Example = dict[str, np.ndarray]

UNREADABLE = "unreadable"
"""Key of the indices of unreadable images in a training example, (TRIES,) int64, padded with -1."""

TRIES = 8
"""Maximum number of images tried for one example, including the first; if all fail, the data is considered broken."""


def steps_per_epoch(source: Source, batch_size: int) -> int:
    """Return the number of full batches in an epoch; the images left over differ from epoch to epoch.

    Raises:
        ValueError: If there are fewer images than `batch_size`.
    """
    if len(source) < batch_size:
        raise ValueError(f"batch_size {batch_size} exceeds the {len(source)} training images: lower it")
    return len(source) // batch_size


def rows_of_process(batch_size: int, process_index: int, process_count: int) -> range:
    """Return the rows of the global batch that one process prepares.

    Raises:
        ValueError: If the batch cannot be divided evenly, or `process_index` is out of range.
    """
    if batch_size % process_count or not 0 <= process_index < process_count:
        raise ValueError(
            f"batch_size {batch_size} cannot be shared evenly by {process_count} processes (this one is number "
            f"{process_index}): take a multiple"
        )
    rows = batch_size // process_count
    return range(process_index * rows, (process_index + 1) * rows)


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, images: int) -> np.ndarray:
    """Return the indices 0 ... images - 1 in the order of `epoch`."""
    # Augmentation is seeded with (seed, epoch, index); no image has the index `images`, so the streams differ.
    return np.random.default_rng((seed, epoch, images)).permutation(images)


class TrainExamples:
    """Training examples of all epochs: {"image": (H, W, C) float32, "label": () int32, "unreadable": (TRIES,)}.

    They are numbered in the order in which this process needs them, `rows` per step. With a `TokenLabelSource`, they
    also have the entries of `labelled_example`.

    The randomness of an image is seeded with (seed, epoch, index). An unreadable image is replaced by another one,
    chosen with the same key, and reported in "unreadable".

    With `recipe.repeated_aug` = n each image occurs n times in a row, and the key distinguishes the copies: repeated
    augmentation (arXiv 1902.05509) as in DeiT's `RASampler`, where an epoch has the usual length and covers 1/n of the
    images.

    Attributes:
        rows: Number of examples of this process in a batch.
        steps: Number of batches in all epochs.
    """

    def __init__(
        self, source: Source, recipe: Recipe, preprocess: Preprocess, *, process_index: int = 0, process_count: int = 1
    ) -> None:
        """
        Args:
            source: Training images.
            recipe: Recipe; its batch_size is the global batch size of all processes.
            preprocess: Preprocessing of the model.
            process_index: Index of this process.
            process_count: Number of processes.

        Raises:
            ValueError: If there is less than one batch, or the processes cannot share it evenly.
        """
        self._source, self._recipe, self._preprocess = source, recipe, preprocess
        self._mine = rows_of_process(recipe.batch_size, process_index, process_count)
        self._steps_per_epoch = steps_per_epoch(source, recipe.batch_size)
        self.rows, self.steps = len(self._mine), self._steps_per_epoch * recipe.total_epochs

    def __len__(self) -> int:
        return self.steps * self.rows

    def __getitem__(self, number: SupportsIndex) -> Example:
        """Return an example.

        Raises:
            UnreadableImageError: If TRIES images in a row cannot be read.
            ValueError: As raised by the source.
        """
        recipe = self._recipe
        step, row = divmod(int(number), self.rows)
        epoch, step_of_epoch = divmod(step, self._steps_per_epoch)
        place, copy = divmod(step_of_epoch * recipe.batch_size + self._mine[row], recipe.repeated_aug)
        index = int(epoch_order(recipe.seed, epoch, len(self._source))[place])
        key = (recipe.seed, epoch, index, *((copy,) if recipe.repeated_aug > 1 else ()))
        (image, label, label_map), unreadable = _first_readable(self._source, index, key)
        example = augmented_example(image, label_map, self._preprocess, recipe, np.random.default_rng(key))
        return {**example, "label": np.asarray(label, np.int32), UNREADABLE: unreadable}


def read_labelled(source: Source, index: int) -> tuple[Image.Image, int, LabelMap | None]:
    """Return image, label and label map (None unless `source` is a `TokenLabelSource`); raises as the source does."""
    return source.labelled(index) if isinstance(source, TokenLabelSource) else (*source[index], None)


def augmented_example(
    image: Image.Image, label_map: LabelMap | None, preprocess: Preprocess, recipe: Recipe, rng: np.random.Generator
) -> Example:
    """Return {"image": (H, W, C)}, and with a label map the entries of `labelled_example`."""
    if label_map is None:
        return {"image": training_image(image, preprocess, recipe, rng)}
    return labelled_example(image, label_map, preprocess, recipe, rng)


def _first_readable(
    source: Source, index: int, key: tuple[int, ...]
) -> tuple[tuple[Image.Image, int, LabelMap | None], np.ndarray]:
    """Read `index`, or else the first readable image of those chosen with `key`; also return the unreadable indices."""
    unreadable = np.full(TRIES, -1, np.int64)
    for attempt in range(TRIES):
        # The stream of the key itself is used by the augmentation; NumPy ignores a trailing 0 in a seed.
        chosen = int(np.random.default_rng((*key, attempt)).integers(len(source))) if attempt else index
        try:
            return read_labelled(source, chosen), unreadable
        except UnreadableImageError:
            unreadable[attempt] = chosen
            if attempt == TRIES - 1:
                raise
    raise AssertionError


class EvalExamples:
    """Every image once, in order: {"image": (H, W, C) float32, "label": () int32, "mask": () bool}.

    All batches have the same size and all processes have the same number of batches: the last ones are padded with zero
    images, for which "mask" is False. `batch_size` is the global batch size of all processes.

    Attributes:
        rows: Number of examples of this process in a batch.
    """

    def __init__(
        self, source: Source, preprocess: Preprocess, batch_size: int, *, process_index: int = 0, process_count: int = 1
    ) -> None:
        """Initialise; raises ValueError if the processes cannot share a batch evenly."""
        self._source, self._preprocess, self._batch_size = source, preprocess, batch_size
        self._mine = rows_of_process(batch_size, process_index, process_count)
        self.rows = len(self._mine)

    def __len__(self) -> int:
        return -(-len(self._source) // self._batch_size) * self.rows

    def __getitem__(self, number: SupportsIndex) -> Example:
        """Return an example; raises ValueError naming the image if it cannot be read.

        No image is skipped, as the metrics would then be for a different set of images.
        """
        step, row = divmod(int(number), self.rows)
        index = step * self._batch_size + self._mine[row]
        if index >= len(self._source):
            nothing = np.zeros((*self._preprocess.size, self._preprocess.in_chans), np.float32)
            return {"image": nothing, "label": np.asarray(0, np.int32), "mask": np.asarray(False)}
        image, label = self._source[index]
        pixels = evaluation_image(image, self._preprocess)
        return {"image": pixels, "label": np.asarray(label, np.int32), "mask": np.asarray(True)}
