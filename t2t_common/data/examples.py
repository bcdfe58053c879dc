"""Every example of a run by its number: which image, augmented how; decided by one seed, shuffled anew each epoch.

Nothing here depends on who asks, in which order, or how often: threads, workers, a resume and the framework change
no example. Several processes share the work by rows: of every batch of B images, process p of P prepares rows p B/P to
(p + 1) B/P, so that all of them together make the batch that one process would.
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
"""Entry of a training example: indices of images that could not be read, (TRIES,) int64, filled up with -1."""

TRIES = 8
"""Images tried in place of one that cannot be read, itself included; beyond that, the data are broken."""


def steps_per_epoch(source: Source, batch_size: int) -> int:
    """Whole batches in an epoch; the images left over are others in every epoch.

    Raises:
        ValueError: not even one batch.
    """
    if len(source) < batch_size:
        raise ValueError(f"batch_size {batch_size} exceeds the {len(source)} training images: lower it")
    return len(source) // batch_size


def rows_of_process(batch_size: int, process_index: int, process_count: int) -> range:
    """Rows of a batch of all processes that one of them prepares.

    Raises:
        ValueError: the batch cannot be shared evenly, or there is no such process.
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
    """The indices 0 ... images - 1 in the order of `epoch`."""
    # Images draw their augmentation by (seed, epoch, index): none of them has the index `images`.
    return np.random.default_rng((seed, epoch, images)).permutation(images)


class TrainExamples:
    """Training examples of all epochs: {"image": (H, W, C) float32, "label": () int32, "unreadable": (TRIES,)}.

    Numbered in the order in which this process needs them: `rows` to a step. From a `TokenLabelSource` come the entries
    of `labelled_example` too.

    Random draws of an image are keyed by (seed, epoch, its index). An image that cannot be read is replaced by another
    one, drawn by the same key, and told of in "unreadable".

    With `recipe.repeated_aug` = n each image comes n times in a row, and the key tells its copies apart: repeated
    augmentation (arXiv 1902.05509) as DeiT's `RASampler` has it, whose epoch is as long as any other and sees one
    n-th of the images.

    Attributes:
        rows: examples of this process in a batch.
        steps: batches in all epochs.
    """

    def __init__(
        self, source: Source, recipe: Recipe, how: Preprocess, *, process_index: int = 0, process_count: int = 1
    ) -> None:
        """
        Args:
            source: the training images.
            recipe: its batch_size is that of all processes together.
            how: the size and figures of the model's input.
            process_index: which process this is.
            process_count: how many there are.

        Raises:
            ValueError: not even one batch, or the processes cannot share it evenly.
        """
        self._source, self._recipe, self._how = source, recipe, how
        self._mine = rows_of_process(recipe.batch_size, process_index, process_count)
        self._steps_per_epoch = steps_per_epoch(source, recipe.batch_size)
        self.rows, self.steps = len(self._mine), self._steps_per_epoch * recipe.total_epochs

    def __len__(self) -> int:
        return self.steps * self.rows

    def __getitem__(self, number: SupportsIndex) -> Example:
        """Raises UnreadableImageError if TRIES images in a row cannot be read, ValueError as the source does."""
        recipe = self._recipe
        step, row = divmod(int(number), self.rows)
        epoch, step_of_epoch = divmod(step, self._steps_per_epoch)
        place, copy = divmod(step_of_epoch * recipe.batch_size + self._mine[row], recipe.repeated_aug)
        index = int(epoch_order(recipe.seed, epoch, len(self._source))[place])
        key = (recipe.seed, epoch, index, *((copy,) if recipe.repeated_aug > 1 else ()))
        (image, label, label_map), unreadable = _first_readable(self._source, index, key)
        example = augmented_example(image, label_map, self._how, recipe, np.random.default_rng(key))
        return {**example, "label": np.asarray(label, np.int32), UNREADABLE: unreadable}


def read_labelled(source: Source, index: int) -> tuple[Image.Image, int, LabelMap | None]:
    """Image, label, and the label map of a `TokenLabelSource`; raises as the source does."""
    return source.labelled(index) if isinstance(source, TokenLabelSource) else (*source[index], None)


def augmented_example(
    image: Image.Image, label_map: LabelMap | None, how: Preprocess, recipe: Recipe, rng: np.random.Generator
) -> Example:
    """{"image": (H, W, C)}, and with a label map the entries of `labelled_example`."""
    if label_map is None:
        return {"image": training_image(image, how, recipe, rng)}
    return labelled_example(image, label_map, how, recipe, rng)


def _first_readable(
    source: Source, index: int, key: tuple[int, ...]
) -> tuple[tuple[Image.Image, int, LabelMap | None], np.ndarray]:
    """`index`, or the first of others drawn by `key` that can be read; and which cannot."""
    unreadable = np.full(TRIES, -1, np.int64)
    for attempt in range(TRIES):
        # The key's own stream is the augmentation's; numpy takes a final 0 for no figure at all.
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

    All batches are of one size, and all processes have as many: the last ones are filled up with zero images, for
    which "mask" is False. `batch_size` is that of all processes together.

    Attributes:
        rows: examples of this process in a batch.
    """

    def __init__(
        self, source: Source, how: Preprocess, batch_size: int, *, process_index: int = 0, process_count: int = 1
    ) -> None:
        """Raises ValueError if the processes cannot share a batch evenly."""
        self._source, self._how, self._batch_size = source, how, batch_size
        self._mine = rows_of_process(batch_size, process_index, process_count)
        self.rows = len(self._mine)

    def __len__(self) -> int:
        return -(-len(self._source) // self._batch_size) * self.rows

    def __getitem__(self, number: SupportsIndex) -> Example:
        """Raises ValueError if the image cannot be read; the message names it. None is ever left out, as counts would
        tell of other images than were asked for."""
        step, row = divmod(int(number), self.rows)
        index = step * self._batch_size + self._mine[row]
        if index >= len(self._source):
            nothing = np.zeros((*self._how.size, self._how.in_chans), np.float32)
            return {"image": nothing, "label": np.asarray(0, np.int32), "mask": np.asarray(False)}
        image, label = self._source[index]
        pixels = evaluation_image(image, self._how)
        return {"image": pixels, "label": np.asarray(label, np.int32), "mask": np.asarray(True)}
