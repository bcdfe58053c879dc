"""Batches of the examples of t2t_common/data/examples.py, loaded by PyTorch's DataLoader. Twin: t2t_jax/data."""

from __future__ import annotations

import atexit
import functools
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from t2t_common.data.corrupt import Unreadable
from t2t_common.data.examples import EvalExamples, Example, TrainExamples
from t2t_common.data.iterator import Batch, BatchIterator
from t2t_common.data.preprocess import Preprocess
from t2t_common.data.readers.sources import Source
from t2t_common.data.timeout import TimeoutIterator
from t2t_common.data.workers import end_with_the_run, leave_signals_to_the_run
from t2t_config import Recipe

FORKSERVER = multiprocessing.get_context("forkserver")
"""Start method of the workers: forking this process directly may deadlock, because it has threads."""
FORKSERVER.set_forkserver_preload(["t2t_common.data.fork_server", __name__])  # imported once for all workers


def train_iterator(
    source: Source,
    recipe: Recipe,
    preprocess: Preprocess,
    *,
    process_index: int = 0,
    process_count: int = 1,
    put: Callable[[Batch], Batch] | None = None,
) -> BatchIterator:
    """Return an iterator over the training batches of all epochs.

    A batch is {"image": (B, H, W, C) float32, "label": (B,) int32}, where B is this process's share. The examples are
    `TrainExamples`: they do not depend on the number of threads, workers or processes or on resuming, and are
    identical to those of `t2t_jax`. The iterator reports unreadable images, and fails after more than
    `recipe.max_corrupt_images` of them.

    Args:
        source: Training images.
        recipe: Recipe; its batch_size is the global batch size.
        preprocess: Preprocessing: input size and normalization.
        process_index: Index of this process.
        process_count: Number of processes.
        put: Function that moves a batch to the device; `recipe.device_prefetch` batches are moved ahead of time. None
            does not move batches.
    """
    examples = TrainExamples(source, recipe, preprocess, process_index=process_index, process_count=process_count)

    def batches_from(position: int) -> Iterator[Batch]:
        steps = range(position, examples.steps)
        return TimeoutIterator(
            lambda: _batches(examples, steps, recipe.data_threads, recipe.data_workers), recipe.data_timeout
        )

    ahead = 0 if put is None else recipe.device_prefetch
    return BatchIterator(batches_from, Unreadable(source, recipe.max_corrupt_images), put=put, ahead=ahead)


def eval_batches(
    source: Source,
    preprocess: Preprocess,
    batch_size: int,
    *,
    threads: int = 4,
    workers: int = 0,
    timeout: float = Recipe.data_timeout,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Yield every image once, in order, in batches of equal size: {"image", "label", "mask"}.

    The examples are `EvalExamples`: the last batch is padded with zero images; `mask` (B,) is True for real ones.
    `batch_size` is the global batch size; each process gets its rows of every batch, so that all processes get the same
    number of batches.

    Raises:
        ValueError: An image cannot be read (the message names it), or no batch arrived for `timeout` seconds.
    """
    examples = EvalExamples(source, preprocess, batch_size, process_index=process_index, process_count=process_count)
    return TimeoutIterator(lambda: _batches(examples, range(len(examples) // examples.rows), threads, workers), timeout)


class _Rows:
    """Batch sampler that yields the indices of each batch's examples."""

    def __init__(self, rows: int, steps: range) -> None:
        self._rows, self._steps = rows, steps

    def __iter__(self) -> Iterator[list[int]]:
        return (list(range(step * self._rows, (step + 1) * self._rows)) for step in self._steps)

    def __len__(self) -> int:
        return len(self._steps)


class _InThreads(Dataset):
    """Dataset that loads the examples of a batch in `threads` threads: image decoding releases the GIL.

    Read errors are returned, not raised, because DataLoader would wrap a worker's error in its traceback.
    """

    def __init__(self, examples: TrainExamples | EvalExamples, threads: int) -> None:
        self._examples, self._threads = examples, threads

    def __getitems__(self, numbers: Sequence[int]) -> list[Example] | list[ValueError]:
        try:
            if self._threads < 2:
                return [self._examples[number] for number in numbers]
            with ThreadPoolExecutor(self._threads) as pool:
                return list(pool.map(self._examples.__getitem__, numbers))
        except ValueError as error:
            return [error]


def _batches(examples: TrainExamples | EvalExamples, steps: range, threads: int, workers: int) -> Iterator[Batch]:
    """Yield the batches of `steps` in order, loaded in `workers` processes, or in this one if 0."""
    rows = examples.rows
    if workers:
        leave_signals_to_the_run()
    loader: DataLoader[Any] = DataLoader(
        _InThreads(examples, threads),
        batch_sampler=_Rows(rows, steps),
        num_workers=workers,
        multiprocessing_context=FORKSERVER if workers else None,
        worker_init_fn=_begin_worker,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
    )
    others = set(multiprocessing.active_children())
    batches = iter(loader)
    kill = functools.partial(_kill, set(multiprocessing.active_children()) - others)
    atexit.register(kill)  # runs before multiprocessing's handler, which would wait for workers that ignore SIGTERM
    try:
        for batch in batches:
            if isinstance(batch, ValueError):
                raise batch
            yield batch
    finally:
        del batches  # shuts its workers down
        kill()
        atexit.unregister(kill)


def _begin_worker(worker: int) -> None:
    end_with_the_run()


def _kill(workers: set[multiprocessing.process.BaseProcess]) -> None:
    for worker in workers:
        worker.kill()


def _collate(examples: list[Example] | list[ValueError]) -> Any:
    return examples[0] if isinstance(examples[0], ValueError) else default_collate(examples)
