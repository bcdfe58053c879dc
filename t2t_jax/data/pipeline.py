"""Batches from a source, by Grain: shuffled anew each epoch, decided by one seed, resumable anywhere."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import grain
import numpy as np

from t2t_common.preprocess import Preprocess, evaluation_image
from t2t_config import Recipe
from t2t_jax.data.sources import Source
from t2t_jax.data.transforms import training_image

Batch = dict[str, np.ndarray]


def steps_per_epoch(source: Source, batch_size: int) -> int:
    """Whole batches in an epoch; the images left over are others in every epoch.

    Raises:
        ValueError: not even one batch.
    """
    if len(source) < batch_size:
        raise ValueError(f"batch_size {batch_size} exceeds the {len(source)} training images: lower it")
    return len(source) // batch_size


def train_iterator(
    source: Source, recipe: Recipe, how: Preprocess, *, process_index: int = 0, process_count: int = 1
) -> grain.DatasetIterator:
    """Training batches of all epochs: {"image": (B, H, W, C) float32, "label": (B,) int32}.

    Random draws of an image are keyed by (seed, epoch, its index), so neither threads nor a resume change
    them. The iterator's position is what `get_state` gives and Orbax saves. Of `process_count` processes, each gets
    its own rows of every batch of `recipe.batch_size` images.
    """
    per_epoch = steps_per_epoch(source, recipe.batch_size) * recipe.batch_size

    def load(position: int, index: int) -> Batch:
        rng = np.random.default_rng((recipe.seed, position // per_epoch, index))
        image, label = source[index]
        return {"image": training_image(image, how, recipe, rng), "label": np.asarray(label, np.int32)}

    dataset = (
        grain.MapDataset.range(len(source))
        .shuffle(seed=recipe.seed)
        .slice(slice(per_epoch))
        .repeat(recipe.total_epochs)
        .map_with_index(load)
        .batch(recipe.batch_size, drop_remainder=True)
    )
    if process_count > 1:
        dataset = dataset.map(functools.partial(_own_rows, index=process_index, count=process_count))
    return iter(dataset.to_iter_dataset(_read_options(recipe.data_threads)))


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
    with zero images; `mask` (B,) is True for real ones. Of `process_count` processes, each gets its own rows of every
    batch of `batch_size` images.
    """

    def load(index: int) -> Batch:
        image, label = source[index]
        return {"image": evaluation_image(image, how), "label": np.asarray(label, np.int32), "mask": np.asarray(True)}

    dataset = grain.MapDataset.range(len(source)).map(load).batch(batch_size, drop_remainder=False)
    for batch in dataset.to_iter_dataset(_read_options(threads)):
        missing = batch_size - len(batch["mask"])
        batch = {name: np.pad(a, [(0, missing)] + [(0, 0)] * (a.ndim - 1)) for name, a in batch.items()}
        yield _own_rows(batch, process_index, process_count)


def _own_rows(batch: Batch, index: int, count: int) -> Batch:
    return {name: np.split(array, count)[index] for name, array in batch.items()}


def _read_options(threads: int) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
