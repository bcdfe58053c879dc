"""python -m t2t_jax.data RECIPE_OR_DATA --bench [--data DIR] [--step-ms MS] [--json FILE]

python -m t2t_jax.data DATA --write FOLDER [--format tar|arrayrecord]

Measures the input by itself: images per second by number of threads and worker processes, and where the time goes.
With --step-ms, the time of one training step, it says whether the input can feed the device (exit code 1 if not).
Or writes all images of DATA ("digits" or a folder) to shards, which train and evaluate read.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

from t2t_common.data.readers.formats import open_source
from t2t_common.data.readers.sources import Source, Split, notes_of
from t2t_common.data.readers.write_shards import Format, write_shards
from t2t_common.data.token_labels import with_token_labels
from t2t_common.io import cli
from t2t_common.io.files import check_target, write_text
from t2t_common.io.terminal import status
from t2t_config import RECIPES, Recipe
from t2t_config import recipe as named_recipe
from t2t_jax.data.bench import bench

OFFICIAL = "imagenet_t2t_vit_14"
"""The recipe that measures a folder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command line."""

    source: tyro.conf.Positional[str]
    """A recipe, or "digits" or a folder (see open_source): measured with the official ImageNet recipe."""
    data: str | None = None
    """The data, where the recipe names none."""
    token_labels: str | None = None
    """The label maps, where the recipe learns from such."""
    bench: bool = False
    """Measure."""
    threads: tuple[int, ...] = (1, 2, 4)
    """Numbers of threads (data_threads) to measure."""
    workers: tuple[int, ...] = (0,)
    """Numbers of worker processes (data_workers) to measure, each with each number of threads."""
    batch_size: int | None = None
    """Images per step of all processes; None takes the recipe's."""
    step_ms: float | None = None
    """Milliseconds of a training step on the device."""
    processes: int = 1
    """Machines that share a batch."""
    seconds: float = 5.0
    """Seconds for each figure."""
    json: Path | None = None
    """Also write the figures to this file."""
    write: Path | None = None
    """Write shards to this new folder."""
    format: Format = "tar"
    """Of the shards: WebDataset's tar layout, or ArrayRecord."""
    images_per_shard: int = 10_000
    """Images in each shard, fewer in the last one."""

    def check(self) -> None:
        """Raises ValueError if the options contradict each other."""
        if self.bench == (self.write is not None):
            raise ValueError("say what to do: --bench, or --write FOLDER")
        for name in ("seconds", "processes", "step_ms", "batch_size"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        if not self.threads or not self.workers or min(*self.threads, *self.workers) < 0:
            raise ValueError(f"threads and workers must be numbers from 0, got {self.threads} and {self.workers}")


def run_bench(options: Options) -> int:
    """Measures, prints, and writes the JSON file; the exit code."""
    if options.json is not None:
        check_target(options.json)
    recipe = _recipe(options)
    assert recipe.data is not None
    settings = [(threads, workers) for workers in options.workers for threads in options.threads]
    source = with_token_labels(open_source(recipe.data, "train", recipe.num_classes), recipe)
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
    if options.json is not None:
        write_text(options.json, json.dumps(result.to_dict(), indent=1) + "\n")
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
        token_labels=options.token_labels,
        batch_size=options.batch_size or recipe.batch_size,
    )
    if recipe.data is None:
        raise ValueError("this recipe has no data of its own: add --data DIR")
    return recipe


def run_write(options: Options, folder: Path) -> int:
    """Writes shards of the splits that are there; the exit code."""
    sources: dict[Split, Source] = {"train": open_source(options.source, "train")}
    sources["val"] = open_source(options.source, "val")
    for note in notes_of(*sources.values()):
        print(note, file=sys.stderr)
    images = write_shards(sources, folder, options.format, images_per_shard=options.images_per_shard)
    print(f"{images} images in {folder}")
    return cli.OK


def main(args: Sequence[str]) -> int:
    """The command; its exit code."""
    options = cli.parse(Options, args, prog="python -m t2t_jax.data", description=(__doc__ or "").strip())
    options.check()
    return run_bench(options) if options.write is None else run_write(options, options.write)


if __name__ == "__main__":
    cli.run_and_end(main)
