"""Batches with Grain of the examples in t2t_common/data/examples.py, loaded by threads or worker processes and
resumable at any position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import grain
from absl import flags

from t2t_common.data.corrupt import Unreadable
from t2t_common.data.examples import EvalExamples, TrainExamples
from t2t_common.data.preprocess import Preprocess
from t2t_common.data.readers.sources import Source
from t2t_common.data.timeout import TimeoutIterator
from t2t_common.data.workers import end_with_the_run, leave_signals_to_the_run
from t2t_config import Recipe
from t2t_jax.data.iterator import Batch, TrainIterator


def train_iterator(
    source: Source,
    recipe: Recipe,
    preprocess: Preprocess,
    *,
    process_index: int = 0,
    process_count: int = 1,
    put: Callable[[Batch], Batch] | None = None,
) -> TrainIterator:
    """Return training batches of all epochs: {"image": (B, H, W, C) float32, "label": (B,) int32}.

    B is the batch size of this process. The examples are `TrainExamples`, so they do not depend on the number of
    threads, workers and processes, or on resuming. The iterator reports images that cannot be read and raises an error
    if there are more than `recipe.max_corrupt_images`.

    Args:
        source: Training images.
        recipe: Training recipe; its batch_size is the total over all processes.
        preprocess: Preprocessing of the model's input.
        process_index: Index of this process, e.g. `jax.process_index()`.
        process_count: Number of processes.
        put: Function that transfers a batch to the device, e.g. `jax.device_put`; `recipe.device_prefetch` batches are
            prefetched. None: batches remain NumPy arrays.
    """
    examples = TrainExamples(source, recipe, preprocess, process_index=process_index, process_count=process_count)
    batches = grain.MapDataset.source(examples).batch(examples.rows, drop_remainder=True)

    def batches_from(position: int) -> Iterator[Batch]:
        rest = batches.slice(slice(position, None)).to_iter_dataset(_read_options(recipe.data_threads))
        if recipe.data_workers:
            _allow_grain_flags()
            options = grain.MultiprocessingOptions(recipe.data_workers, per_worker_buffer_size=2)
            rest = rest.mp_prefetch(options, worker_init_fn=_begin_worker)
        return TimeoutIterator(lambda: _begin(rest, recipe.data_workers), recipe.data_timeout)

    ahead = 0 if put is None else recipe.device_prefetch
    return TrainIterator(batches_from, Unreadable(source, recipe.max_corrupt_images), put=put, ahead=ahead)


def eval_batches(
    source: Source,
    preprocess: Preprocess,
    batch_size: int,
    *,
    threads: int = 4,
    timeout: float = Recipe.data_timeout,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Return batches of equal size with every image once, in order: {"image", "label", "mask"}, as NumPy arrays.

    The examples are `EvalExamples`: the last batch is padded with zero images; `mask` (B,) is True for real ones.
    `batch_size` is the total over all processes. Each process gets its rows of every batch, and all processes get the
    same number of batches.

    Raises:
        ValueError: If an image cannot be read (the message names it), or no batch arrives within `timeout` seconds.
    """
    examples = EvalExamples(source, preprocess, batch_size, process_index=process_index, process_count=process_count)
    dataset = grain.MapDataset.source(examples).batch(examples.rows, drop_remainder=True)
    return TimeoutIterator(lambda: iter(dataset.to_iter_dataset(_read_options(threads))), timeout)


def _begin(batches: grain.IterDataset, workers: int) -> Iterator[Batch]:
    if workers:
        leave_signals_to_the_run()
    return iter(batches)


def _allow_grain_flags() -> None:
    """Let Grain's workers read Grain's absl flags, which only absl's main parses; all other flags stay as they are."""
    for module, own in flags.FLAGS.flags_by_module_dict().items():
        if module.startswith("grain."):
            for flag in own:
                flag.present = max(flag.present, 1)


def _begin_worker(worker: int, workers: int) -> None:
    end_with_the_run()


def _read_options(threads: int) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
