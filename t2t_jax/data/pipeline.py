"""Batches from a source, by Grain: shuffled anew each epoch, decided by one seed, resumable anywhere.

Several processes share the work by rows: of every batch of B images, process p of P prepares rows p B/P to
(p + 1) B/P, so that all of them together make the batch that one process would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import grain
import numpy as np
from absl import flags
from PIL import Image

from t2t_common.images import UnreadableImageError
from t2t_common.preprocess import Preprocess, evaluation_image
from t2t_config import Recipe
from t2t_jax.data.iterator import UNREADABLE, Batch, TrainIterator
from t2t_jax.data.sources import Source
from t2t_jax.data.transforms import training_image

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


def train_iterator(
    source: Source,
    recipe: Recipe,
    how: Preprocess,
    *,
    process_index: int = 0,
    process_count: int = 1,
    put: Callable[[Batch], Batch] | None = None,
) -> TrainIterator:
    """Training batches of all epochs: {"image": (B, H, W, C) float32, "label": (B,) int32}, B of this process.

    Random draws of an image are keyed by (seed, epoch, its index), so neither threads, workers, processes nor a
    resume change them. An image that cannot be read is replaced by another one, drawn by the same key; the
    iterator names it, and fails beyond `recipe.max_corrupt_images`.

    With `recipe.repeated_aug` = n each image comes n times in a row, and the key tells its copies apart: repeated
    augmentation (arXiv 1902.05509) as DeiT's `RASampler` has it, whose epoch is as long as any other and sees one
    n-th of the images.

    Args:
        source: the training images.
        recipe: its batch_size is that of all processes together.
        how: the size and figures of the model's input.
        process_index: which process this is, such as `jax.process_index()`.
        process_count: how many there are.
        put: carries a batch to the device (`jax.device_put`); `recipe.device_prefetch` batches lie there ahead. None
            leaves them in numpy.
    """
    rows = rows_of_process(recipe.batch_size, process_index, process_count)
    steps = steps_per_epoch(source, recipe.batch_size)
    per_epoch, repeats = steps * recipe.batch_size, recipe.repeated_aug
    order = grain.MapDataset.range(len(source)).shuffle(seed=recipe.seed)
    if repeats > 1:
        order = grain.MapDataset.mix([order] * repeats)  # takes one of each in turn
    order = order.slice(slice(per_epoch)).repeat(recipe.total_epochs)

    def load(number: int) -> Batch:
        step, row = divmod(number, len(rows))
        position = step * recipe.batch_size + rows[row]
        epoch, place = divmod(position, per_epoch)
        index = order[position]
        key = (recipe.seed, epoch, index, *((place % repeats,) if repeats > 1 else ()))
        image, label, unreadable = _read(source, index, key)
        pixels = training_image(image, how, recipe, np.random.default_rng(key))
        return {"image": pixels, "label": np.asarray(label, np.int32), UNREADABLE: unreadable}

    mine = grain.MapDataset.range(steps * recipe.total_epochs * len(rows)).map(load)
    batches = mine.batch(len(rows), drop_remainder=True)

    def batches_from(position: int) -> Iterator[Batch]:
        rest = batches.slice(slice(position, None)).to_iter_dataset(_read_options(recipe.data_threads))
        if recipe.data_workers:
            if not flags.FLAGS.is_parsed():  # Grain's workers ask for flags that only absl's own main parses
                flags.FLAGS.mark_as_parsed()
            rest = rest.mp_prefetch(grain.MultiprocessingOptions(recipe.data_workers, per_worker_buffer_size=2))
        return iter(rest)

    ahead = 0 if put is None else recipe.device_prefetch
    return TrainIterator(batches_from, source, max_corrupt_images=recipe.max_corrupt_images, put=put, ahead=ahead)


def _read(source: Source, index: int, key: tuple[int, ...]) -> tuple[Image.Image, int, np.ndarray]:
    """Image and label of `index`, or of the first of others drawn by `key` that can be read; and which cannot."""
    unreadable = np.full(TRIES, -1, np.int64)
    for attempt in range(TRIES):
        # The key's own stream is the augmentation's; numpy takes a final 0 for no figure at all.
        chosen = int(np.random.default_rng((*key, attempt)).integers(len(source))) if attempt else index
        try:
            image, label = source[chosen]
            return image, label, unreadable
        except UnreadableImageError:
            unreadable[attempt] = chosen
            if attempt == TRIES - 1:
                raise
    raise AssertionError


def eval_batches(
    source: Source,
    how: Preprocess,
    batch_size: int,
    *,
    threads: int = 4,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Every image once, in order, all batches of one size: {"image", "label", "mask"}.

    Plain numpy, so PyTorch can use them too (images are (B, H, W, C) float32). The last batch is filled up
    with zero images; `mask` (B,) is True for real ones. `batch_size` is that of all processes together; each gets its
    rows of every batch, all get as many batches.

    Raises:
        ValueError: an image cannot be read; the message names it. None is ever left out, as counts would tell of
            other images than were asked for.
    """
    rows = rows_of_process(batch_size, process_index, process_count)

    def load(number: int) -> Batch:
        step, row = divmod(number, len(rows))
        index = step * batch_size + rows[row]
        if index >= len(source):
            nothing = np.zeros((*how.size, how.in_chans), np.float32)
            return {"image": nothing, "label": np.asarray(0, np.int32), "mask": np.asarray(False)}
        image, label = source[index]
        return {"image": evaluation_image(image, how), "label": np.asarray(label, np.int32), "mask": np.asarray(True)}

    steps = -(-len(source) // batch_size)
    dataset = grain.MapDataset.range(steps * len(rows)).map(load).batch(len(rows), drop_remainder=True)
    return iter(dataset.to_iter_dataset(_read_options(threads)))


def _read_options(threads: int) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
