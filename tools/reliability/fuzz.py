"""python -m tools.reliability.fuzz [--cases N] [--only idx tar] [--json FILE]

Damaged and hostile files for every reader of the product: structured changes of small valid samples, decided by a
seed. Each case is read in a process with limits, in a folder of its own. It may be read or refused; what is refused has
to be refused by a documented error, in one line that names the file. It must not crash, hang, fill the memory, write
anywhere else, or run code. Exit code 1 if one did; `--only NAME --first N --each 1` repeats a case.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t2t_common.io import cli
from t2t_common.io.terminal import status
from tools.command import parse
from tools.reliability.fuzzing import campaign
from tools.reliability.fuzzing.campaign import Tally
from tools.reliability.fuzzing.worker import Told
from tools.reliability.record import write
from tools.tables import show

CASES: Mapping[str, int] = {
    "weights.pth": 4_000,
    "weights.pth_legacy": 6_192,
    "weights.pdparams": 10_615,
    "weights.into_torch": 100,
    "weights.safetensors_torch": 14_000,
    "weights.safetensors_jax": 14_000,
    "weights.into_jax": 60,
    "weights.hub_torch": 100,
    "weights.hub_jax": 30,
    "weights.options": 14_000,
    "weights.label_map": 9_000,
    "folders.orbax_model": 60,
    "folders.training_jax": 40,
    "folders.training_torch": 300,
    "folders.export_jax": 300,
    "data.idx": 2_500,
    "data.cifar": 2_702,
    "data.tar": 2_000,
    "data.tar_whole": 1_000,
    "data.tar_index": 1_801,
    "data.array_record": 500,
    "data.class_files": 5_308,
    "data.image_folder": 1_500,
    "data.image_files": 1_000,
    "texts.parity_report": 1_500,
    "texts.survey": 5_000,
    "texts.run_page": 2_702,
    "texts.resumed_run": 1_000,
    "texts.recipes": 150,
    "texts.download": 500,
}
"""Reader (a function in tools/reliability/fuzzing) -> its cases: fewer where one takes long."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command line."""

    cases: int = sum(CASES.values())
    """Of all readers together, shared among them as in a full run."""
    only: tuple[str, ...] = ()
    """Readers, in place of all; in the file for the result the others stay as they are."""
    each: int | None = None
    """Cases of each reader, in place of its share."""
    first: int = 0
    """Number of the first case."""
    seed: int = 0
    """Decides every change."""
    json: Path | None = None
    """File for the result."""


def counts(cases: int, only: Sequence[str] = (), each: int | None = None) -> dict[str, int]:
    """Cases by the dotted name of the reader: its share of `cases`, or `each`.

    Raises:
        ValueError: no such reader.
    """
    short = [name.rpartition(".")[2] for name in CASES]
    if unknown := [name for name in only if name not in short]:
        raise ValueError(f"no reader {unknown[0]!r}: choose among {', '.join(short)}")
    total = sum(CASES.values())
    return {
        f"tools.reliability.fuzzing.{name}": math.ceil(cases * count / total) if each is None else each
        for name, count in CASES.items()
        if not only or name.rpartition(".")[2] in only
    }


COLUMNS = ("reader", "cases", "read", "refused", "defects", "slowest, s", "growth, MB")


class Result:
    """The file of the result, written after every reader; those left out stay as an earlier call wrote them."""

    def __init__(self, options: Options) -> None:
        self._path, self._seed, self._start = options.json, options.seed, time.monotonic()
        self._readers: dict[str, Any] = {}
        self._seconds = 0.0
        if self._path is not None and options.only and self._path.is_file():
            earlier = json.loads(self._path.read_text(encoding="utf-8"))
            self._readers, self._seconds = earlier["readers"], earlier["seconds"]

    def save(self, tallies: Mapping[str, Tally]) -> None:
        if self._path is None:
            return
        readers = {**self._readers, **{name.rpartition(".")[2]: tally.figures for name, tally in tallies.items()}}
        order = [name.rpartition(".")[2] for name in CASES]
        figures = {
            "cases": sum(figures["cases"] for figures in readers.values()),
            "cases with a defect": sum(figures["defects"] for figures in readers.values()),
            "seed": self._seed,
            "readers": {name: readers[name] for name in order if name in readers},
        }
        seconds = self._seconds + time.monotonic() - self._start
        write(self._path, "python -m tools.reliability.fuzz", figures, seconds=seconds)


def main(args: Sequence[str]) -> int:
    options = parse(Options, args, "tools.reliability.fuzz", __doc__)
    chosen = counts(options.cases, options.only, options.each)
    result, done, seen = Result(options), 0, set[tuple[str, str]]()
    with status("fuzzing") as shown:

        def progress(name: str, told: Told) -> None:
            nonlocal done
            done += 1
            if done % 100 == 0:
                shown.update(f"{done} of {sum(chosen.values())} cases, at {name}")
            kind = (told.outcome, told.detail.rpartition("(")[2])
            if told.outcome not in ("read", "refused") and kind not in seen:
                seen.add(kind)
                print(f"{name} case {told.number}: {told.outcome}: {told.detail}", flush=True)

        tallies = campaign.run(chosen, seed=options.seed, first=options.first, progress=progress, finished=result.save)
    show(COLUMNS, [(name.rpartition(".")[2], *map(str, tally.figures.values())) for name, tally in tallies.items()])
    defects = sum(len(tally.defects) for tally in tallies.values())
    print(f"{sum(tally.cases for tally in tallies.values())} cases, {defects} with a defect")
    return cli.FAILED if defects else cli.OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
