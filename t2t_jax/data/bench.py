"""Benchmark of the input pipeline: throughput, time per stage, and whether it can feed a device."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from t2t_common.data.examples import augmented_example, read_labelled
from t2t_common.data.images import UnreadableImageError
from t2t_common.data.preprocess import Preprocess
from t2t_common.data.readers.sources import Source
from t2t_common.evaluation.cpu_chunks import available_cores
from t2t_config import Recipe
from t2t_jax.data.pipeline import train_iterator

MEASURED_BATCH = 32
"""Maximum batch size of the benchmark; larger batches take longer and hardly change the times per image."""

ENDLESS = 10_000
"""Number of epochs, high enough for a small data set not to run out."""


@dataclasses.dataclass(frozen=True)
class Rate:
    """Throughput of the whole input pipeline with one setting."""

    threads: int
    workers: int
    images_per_second: float


@dataclasses.dataclass(frozen=True)
class Bench:
    """Results of `bench`; times are in milliseconds per image on one thread.

    Attributes:
        decode_ms: Time of reading and decoding.
        augment_ms: Time of all of the recipe's processing on the host, including normalisation.
        batch_ms: Time of collating images into a batch.
        rates: Throughput of every setting.
        cores: Number of cores available to this process.
        needed: Images per second that the device needs; None without a step time.
    """

    images: int
    batch_size: int
    decode_ms: float
    augment_ms: float
    batch_ms: float
    rates: tuple[Rate, ...]
    cores: int
    needed: float | None

    @property
    def best(self) -> Rate:
        return max(self.rates, key=lambda rate: rate.images_per_second)

    @property
    def feeds(self) -> bool | None:
        """Whether the best setting is as fast as the device; None without a step time."""
        return None if self.needed is None else self.best.images_per_second >= self.needed

    @property
    def cores_needed(self) -> float | None:
        """Estimated number of cores of this kind that can feed the device; None without a step time."""
        return None if self.needed is None else self.needed * self._total_ms / 1000

    @property
    def _total_ms(self) -> float:
        return self.decode_ms + self.augment_ms + self.batch_ms

    def to_dict(self) -> dict[str, Any]:
        """Return all results as JSON values."""
        facts = dataclasses.asdict(self)
        return {**facts, "feeds": self.feeds, "cores_needed": self.cores_needed}

    def __str__(self) -> str:
        lines = [f"{self.images:,} training images, batches of {self.batch_size}, {self.cores} cores", ""]
        for name in ("decode", "augment", "batch"):
            ms = getattr(self, f"{name}_ms")
            lines.append(f"{name:<10}{ms:9.3f} ms/image {100 * ms / self._total_ms:5.0f} %")
        lines += ["", f"{'threads':>7} {'workers':>8} {'images/s':>12}"]
        lines += [f"{rate.threads:>7} {rate.workers:>8} {rate.images_per_second:>12,.0f}" for rate in self.rates]
        if self.needed is not None:
            verdict = "feeds the device" if self.feeds else "cannot feed the device"
            lines += [
                "",
                f"{verdict}: {self.best.images_per_second:,.0f} images/s, a step needs {self.needed:,.0f}; "
                f"about {self.cores_needed:.1f} such cores are needed",
            ]
        return "\n".join(lines)


def bench(
    source: Source,
    recipe: Recipe,
    *,
    settings: Sequence[tuple[int, int]],
    seconds: float,
    step_ms: float | None = None,
    processes: int = 1,
) -> Bench:
    """Benchmark the training input of `recipe` with images from `source`.

    Args:
        source: Training images.
        recipe: Recipe with the batch size, augmentation and image size.
        settings: Pairs (data_threads, data_workers) to benchmark.
        seconds: Approximate duration of the measurement of the stages, and of each setting.
        step_ms: Duration of one training step on the device, in milliseconds.
        processes: Number of processes that share a batch, each on a separate machine like this one.

    Raises:
        ValueError: If there are fewer images than one batch, or images cannot be read.
    """
    preprocess = Preprocess.of_recipe(recipe)
    decode, augment, batch = _split_time(source, recipe, preprocess, seconds)
    rates = tuple(Rate(*setting, _throughput(source, recipe, preprocess, *setting, seconds)) for setting in settings)
    needed = None if step_ms is None else 1000 * recipe.batch_size / processes / step_ms
    cores = available_cores()
    return Bench(len(source), recipe.batch_size, decode, augment, batch, rates, cores, needed)


def _split_time(source: Source, recipe: Recipe, preprocess: Preprocess, seconds: float) -> tuple[float, float, float]:
    """Return the milliseconds per image for decoding, augmenting and batching, on this thread."""
    order = np.random.default_rng(0).permutation(len(source))
    spent, count = np.zeros(3), 0
    while spent.sum() < seconds:
        images = []
        for index in order[np.arange(count, count + MEASURED_BATCH) % len(order)].tolist():
            start = time.perf_counter()
            try:
                image, _, label_map = read_labelled(source, index)
            except UnreadableImageError:
                continue  # reported when whole batches are measured
            decoded = time.perf_counter()
            example = augmented_example(image, label_map, preprocess, recipe, np.random.default_rng((0, index)))
            images.append(example["image"])
            spent[:2] += decoded - start, time.perf_counter() - decoded
        start = time.perf_counter()
        if images:
            np.stack(images)
        spent[2] += time.perf_counter() - start
        count += MEASURED_BATCH
    return tuple((1000 * spent / count).tolist())


def _throughput(
    source: Source, recipe: Recipe, preprocess: Preprocess, threads: int, workers: int, seconds: float
) -> float:
    """Return the images per second of `train_iterator`."""
    size = min(recipe.batch_size, MEASURED_BATCH)
    changed = dataclasses.replace(recipe, data_threads=threads, data_workers=workers, batch_size=size, epochs=ENDLESS)
    iterator = train_iterator(source, changed, preprocess)
    # Every thread prepares one batch at a time, so batches arrive in bursts: only whole bursts are counted.
    burst, buffered = max(1, threads) * max(1, workers), 3 * max(1, threads) * max(1, workers)
    try:
        for _ in range(burst + buffered):  # start threads and workers, and use up the batches buffered meanwhile
            next(iterator)
        start, bursts = time.perf_counter(), 0
        while not bursts or time.perf_counter() - start < seconds:
            for _ in range(burst):
                next(iterator)
            bursts += 1
        return bursts * burst * size / (time.perf_counter() - start)
    finally:
        iterator.close()
