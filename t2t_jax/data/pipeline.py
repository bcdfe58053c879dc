"""Batches from a source, by Grain: shuffled anew each epoch, decided by one seed, resumable anywhere."""

from __future__ import annotations

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


def train_iterator(source: Source, recipe: Recipe, how: Preprocess) -> grain.DatasetIterator:
    """Training batches of all epochs: {"image": (B, H, W, C) float32, "label": (B,) int32}.

    Random draws of an image are keyed by (seed, epoch, its index), so neither threads nor a resume change
    them. The iterator's position is what `get_state` gives and Orbax saves.

    With `recipe.repeated_aug` = n each image comes n times in a row, and the key tells its copies apart: repeated
    augmentation (arXiv 1902.05509) as DeiT's `RASampler` has it, whose epoch is as long as any other and sees one
    n-th of the images.
    """
    per_epoch, repeats = steps_per_epoch(source, recipe.batch_size) * recipe.batch_size, recipe.repeated_aug

    def load(position: int, index: int) -> Batch:
        epoch, place = divmod(position, per_epoch)
        copy = (place % repeats,) if repeats > 1 else ()
        rng = np.random.default_rng((recipe.seed, epoch, index, *copy))
        image, label = source[index]
        return {"image": training_image(image, how, recipe, rng), "label": np.asarray(label, np.int32)}

    order = grain.MapDataset.range(len(source)).shuffle(seed=recipe.seed)
    if repeats > 1:
        order = grain.MapDataset.mix([order] * repeats)  # takes one of each in turn
    dataset = (
        order.slice(slice(per_epoch))
        .repeat(recipe.total_epochs)
        .map_with_index(load)
        .batch(recipe.batch_size, drop_remainder=True)
    )
    return iter(dataset.to_iter_dataset(_read_options(recipe.data_threads)))


def eval_batches(source: Source, how: Preprocess, batch_size: int, *, threads: int = 4) -> Iterator[Batch]:
    """Every image once, in order, all batches of one size: {"image", "label", "mask"}.

    Plain numpy, so PyTorch can use them too (images are (B, H, W, C) float32). The last batch is filled up
    with zero images; `mask` (B,) is True for real ones.
    """

    def load(index: int) -> Batch:
        image, label = source[index]
        return {"image": evaluation_image(image, how), "label": np.asarray(label, np.int32), "mask": np.asarray(True)}

    dataset = grain.MapDataset.range(len(source)).map(load).batch(batch_size, drop_remainder=False)
    for batch in dataset.to_iter_dataset(_read_options(threads)):
        missing = batch_size - len(batch["mask"])
        yield {name: np.pad(a, [(0, missing)] + [(0, 0)] * (a.ndim - 1)) for name, a in batch.items()}


def _read_options(threads: int) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
