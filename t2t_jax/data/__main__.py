"""python -m t2t_jax.data SRC --bench [--data DIR] [--step-ms MS] [--json FILE]

python -m t2t_jax.data SRC --write FOLDER [--format tar|arrayrecord]

Benchmark the input pipeline: images per second by number of threads and worker processes, and time per stage.
With --step-ms, the time of one training step, also report whether the input can feed the device (exit code 1 if not).
Or write all images of SRC ("digits" or a folder) to shards, which can be used for training and evaluation.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

from t2t_common.data.readers.formats import SPLITS, open_source
from t2t_common.data.readers.sources import notes_of
from t2t_common.data.readers.write_shards import Format, write_shards
from t2t_common.data.token_labels import with_token_labels
from t2t_common.io import cli
from t2t_common.io.files import check_target, write_json
from t2t_common.io.terminal import status
from t2t_config import RECIPES, Recipe
from t2t_config import recipe as named_recipe
from t2t_config.bounds import check_bounds
from t2t_jax.data.bench import bench

OFFICIAL = "imagenet_t2t_vit_14"
"""Recipe used to benchmark a folder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Command-line options."""

    source: tyro.conf.Positional[str]
    """Recipe to benchmark; or "digits" or a folder (see open_source), benchmarked with the official ImageNet recipe."""
    data: str | None = None
    """Data to read, if the recipe specifies none."""
    val_fraction: float | None = None
    """Fraction of the images of a folder of class folders that is for validation."""
    token_labels: str | None = None
    """Label maps, if the recipe uses token labels."""
    bench: bool = False
    """Run the benchmark."""
    threads: tuple[int, ...] = (1, 2, 4)
    """Numbers of threads (data_threads) to benchmark."""
    workers: tuple[int, ...] = (0,)
    """Numbers of worker processes (data_workers) to benchmark, each with every number of threads."""
    batch_size: int | None = None
    """Images per step over all processes; None for the recipe's batch size."""
    step_ms: float | None = None
    """Duration of a training step on the device, in milliseconds."""
    processes: int = 1
    """Number of machines that share a batch."""
    seconds: float = 5.0
    """Duration of each measurement, in seconds."""
    json: Path | None = None
    """JSON file to write the results to."""
    write: Path | None = None
    """New folder to write shards to."""
    format: Format = "tar"
    """Format of the shards: WebDataset's tar layout, or ArrayRecord."""
    images_per_shard: int = 10_000
    """Images per shard; the last one may have fewer."""

    def check(self) -> None:
        """Raise ValueError if an option is invalid or options contradict each other."""
        if self.bench == (self.write is not None):
            raise ValueError("nothing to do: add --bench, or --write FOLDER")
        for name in ("seconds", "processes", "step_ms", "batch_size"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        if self.val_fraction is not None:
            check_bounds({"val_fraction": self.val_fraction})
        if not self.threads or not self.workers or min(*self.threads, *self.workers) < 0:
            raise ValueError(f"threads and workers must be numbers from 0, got {self.threads} and {self.workers}")


def run_bench(options: Options) -> int:
    """Run the benchmark, print the results and write the JSON file; return the exit code."""
    check_target(options.json)
    recipe = _recipe(options)
    assert recipe.data is not None
    settings = [(threads, workers) for workers in options.workers for threads in options.threads]
    images = open_source(recipe.data, "train", recipe.num_classes, recipe.val_fraction)
    source = with_token_labels(images, recipe)
    with status(f"measuring: about {(1 + len(settings)) * options.seconds:.0f} s"):
        result = bench(
            source,
            recipe,
            settings=settings,
            seconds=options.seconds,
            step_ms=options.step_ms,
            processes=options.processes,
        )
    print(result)
    write_json(options.json, result.to_dict())
    return cli.FAILED if result.feeds is False else cli.OK


def _recipe(options: Options) -> Recipe:
    name, data = options.source, options.data
    if name not in RECIPES:
        if name != "digits" and not Path(name).is_dir():
            raise ValueError(f"{name!r} is neither a folder nor a recipe: python -m t2t_jax.train --help lists them")
        if data is not None:
            raise ValueError(f"{name} is a folder of data, and so is --data {data}: name one of them")
        name, data = OFFICIAL, name
    recipe = named_recipe(name)
    recipe = dataclasses.replace(
        recipe,
        data=data or recipe.data,
        val_fraction=options.val_fraction,
        token_labels=options.token_labels,
        batch_size=options.batch_size or recipe.batch_size,
    )
    if recipe.data is None:
        raise ValueError("this recipe needs data: add --data DIR")
    return recipe


def run_write(options: Options, folder: Path) -> int:
    """Write shards of the available splits; return the exit code."""
    sources = {split: open_source(options.source, split, val_fraction=options.val_fraction) for split in SPLITS}
    for note in notes_of(*sources.values()):
        print(note, file=sys.stderr)
    images = write_shards(sources, folder, options.format, images_per_shard=options.images_per_shard)
    print(f"{images} images in {folder}")
    return cli.OK


def main(args: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    options = cli.parse(Options, args, prog="python -m t2t_jax.data", description=(__doc__ or "").strip())
    options.check()
    return run_bench(options) if options.write is None else run_write(options, options.write)


if __name__ == "__main__":
    cli.run_and_end(main)
