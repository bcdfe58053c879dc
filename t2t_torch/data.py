"""Batches by PyTorch's DataLoader, of the examples that t2t_common/data/examples.py defines. Twin: t2t_jax/data."""

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
from t2t_common.data.timeout import Patient
from t2t_common.data.workers import end_with_the_run, leave_signals_to_the_run
from t2t_config import Recipe

FORKSERVER = multiprocessing.get_context("forkserver")
"""What workers come from: forks of this process, which has threads, may wait for ever."""
FORKSERVER.set_forkserver_preload(["t2t_common.data.fork_server", __name__])  # imported once for all workers


def train_iterator(
    source: Source,
    recipe: Recipe,
    how: Preprocess,
    *,
    process_index: int = 0,
    process_count: int = 1,
    put: Callable[[Batch], Batch] | None = None,
) -> BatchIterator:
    """Training batches of all epochs: {"image": (B, H, W, C) float32, "label": (B,) int32}, B of this process.

    The examples are `TrainExamples`, so neither threads, workers, processes nor a resume change them, and they are
    those that `t2t_jax` gets. The iterator names images that cannot be read, and fails beyond
    `recipe.max_corrupt_images`.

    Args:
        source: the training images.
        recipe: its batch_size is that of all processes together.
        how: the size and figures of the model's input.
        process_index: which process this is.
        process_count: how many there are.
        put: carries a batch to the device; `recipe.device_prefetch` batches lie there ahead. None leaves them.
    """
    examples = TrainExamples(source, recipe, how, process_index=process_index, process_count=process_count)

    def batches_from(position: int) -> Iterator[Batch]:
        steps = range(position, examples.steps)
        return Patient(lambda: _batches(examples, steps, recipe.data_threads, recipe.data_workers), recipe.data_timeout)

    ahead = 0 if put is None else recipe.device_prefetch
    return BatchIterator(batches_from, Unreadable(source, recipe.max_corrupt_images), put=put, ahead=ahead)


def eval_batches(
    source: Source,
    how: Preprocess,
    batch_size: int,
    *,
    threads: int = 4,
    workers: int = 0,
    timeout: float = Recipe.data_timeout,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Every image once, in order, all batches of one size: {"image", "label", "mask"}.

    The examples are `EvalExamples`: the last batch is filled up with zero images; `mask` (B,) is True for real ones.
    `batch_size` is that of all processes together; each gets its rows of every batch, all get as many batches.

    Raises:
        ValueError: an image cannot be read; the message names it. Or no batch came for `timeout` seconds.
    """
    examples = EvalExamples(source, how, batch_size, process_index=process_index, process_count=process_count)
    return Patient(lambda: _batches(examples, range(len(examples) // examples.rows), threads, workers), timeout)


class _Rows:
    """The numbers of each batch's examples; a sampler of batches."""

    def __init__(self, rows: int, steps: range) -> None:
        self._rows, self._steps = rows, steps

    def __iter__(self) -> Iterator[list[int]]:
        return (list(range(step * self._rows, (step + 1) * self._rows)) for step in self._steps)

    def __len__(self) -> int:
        return len(self._steps)


class _InThreads(Dataset):
    """Examples by their numbers, those of a batch in `threads` threads: decoding leaves Python's lock alone.

    What cannot be read is returned, not raised: DataLoader would wrap a worker's error in its traceback.
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
    """The batches of `steps`, in order, made in `workers` processes, or in this one."""
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
    atexit.register(kill)  # the latest runs first: else multiprocessing would wait for what goes by no SIGTERM
    try:
        for batch in batches:
            if isinstance(batch, ValueError):
                raise batch
            yield batch
    finally:
        del batches  # ends its workers in good order
        kill()
        atexit.unregister(kill)


def _begin_worker(worker: int) -> None:
    end_with_the_run()


def _kill(workers: set[multiprocessing.process.BaseProcess]) -> None:
    for worker in workers:
        worker.kill()


def _collate(examples: list[Example] | list[ValueError]) -> Any:
    return examples[0] if isinstance(examples[0], ValueError) else default_collate(examples)
