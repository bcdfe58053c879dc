"""python -m tools.benchmarks.speed [--official CHECKOUT] [--model NAME] [--json FILE]

Images a second of T2T-ViT, ours beside others, in inference and in training. Every contestant runs in a process of its
own, and they take turns, so that what slows the machine slows all of them. A turn is some calls in a row, of which the
first does not count: as in a training loop, a call finds the memory that the one before it left. Figures are medians
over the rounds, and ratios the medians of each round's ratio.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from t2t_common.io import cli
from t2t_config.flops import forward_flops, training_flops
from tools.benchmarks.contestants import Setup, Task, matrix_product_flops
from tools.command import parse, save

OURS = ("t2t_jax", "t2t_torch")
LIMIT = "matrix_product"
IN_PARTS = "t2t_jax, in parts"
"""In training alone: evaluation takes a batch in parts by itself."""
OTHER_MODELS = {"timm's DeiT-S": "vit_deit_small_patch16_224"}
"""Contestants that are not the chosen model: what theirs is called here."""
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""For every contestant alike: without huge pages a step's memory is mapped anew, 4 KiB at a time."""
ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command line."""

    model: str = "t2t_vit_14"
    """Name of the model; the baseline knows those with performer tokens and plain blocks."""
    batch: int = 16
    """Images of a call."""
    img_size: int = 224
    """Side of the images, in pixels."""
    rounds: int = 5
    """Turns of each contestant that count; one before them does not."""
    calls: int = 2
    """Calls in a turn that count, their mean; one before them does not."""
    official: Path | None = None
    """Checkout of yitu-opensource/T2T-ViT, to measure the authors' own code."""
    timm_python: Path = Path(".venv-timm/bin/python")
    """Python of an environment with timm (make test-timm creates it), for the authors' code and timm's DeiT-S."""
    tasks: tuple[Task, ...] = ("inference", "training")
    """What to time."""
    only: tuple[str, ...] = ()
    """Labels of the contestants, such as t2t_jax "authors' code"; all by default."""
    json: Path | None = None
    """File for all figures."""


@dataclasses.dataclass
class Contestant:
    """A worker process (see worker.py) and what it has answered."""

    label: str
    process: subprocess.Popen[str]
    answers: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)
    """A call, in every turn that counts."""

    def take_turn(self, calls: int, *, counts: bool) -> None:
        """One call that does not count, and `calls` that do where the turn `counts`."""
        for _ in range(1 + calls):
            self._call()
        if counts:
            self.seconds.append(statistics.mean(answer["seconds"] for answer in self.answers[-calls:]))

    def _call(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the missing answer below tells
        line = self.process.stdout.readline()
        if not line:
            raise ValueError(f"{self.label} ended before it answered: its error stands above")
        self.answers.append(json.loads(line))


def main(args: Sequence[str]) -> int:
    options = parse(Options, args, "tools.benchmarks.speed", __doc__)
    check(options)
    console = Console()
    console.width = max(console.width, 110)  # that the table needs
    setup = {**dataclasses.asdict(_setup(options)), "official": options.official is not None}
    report: dict[str, Any] = {"setup": setup, "machine": _machine(), "tasks": {}}
    for task in options.tasks:
        report["tasks"][task] = found = measure(options, task, console)
        console.print(_table(task, found))
    save(options.json, report)
    return cli.OK


def check(options: Options) -> None:
    """Raises ValueError or FileNotFoundError where the options cannot be followed."""
    if options.official is not None and not options.timm_python.exists():
        raise FileNotFoundError(
            f"--timm-python {options.timm_python} does not exist: make test-timm creates .venv-timm"
        )
    labels = [label for label, _, _ in _entries(options)]
    if unknown := [label for label in options.only if label not in labels]:
        raise ValueError(f"--only {unknown[0]!r} is none of {', '.join(labels)}")
    for name in ("rounds", "calls"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} {getattr(options, name)}: at least one has to count")


def measure(options: Options, task: Task, console: Console) -> dict[str, Any]:
    """Medians of every contestant: seconds, images a second, ratio to the others, share of the limit."""
    entries = [entry for entry in _entries(options) if task == "training" or entry[0] != IN_PARTS]
    chosen = [entry for entry in entries if not options.only or entry[0] in (LIMIT, *options.only)]
    with contextlib.ExitStack() as stack, console.status(task) as status:
        contestants = [stack.enter_context(_started(*entry, options, task)) for entry in chosen]
        for number in range(options.rounds + 1):
            for contestant in contestants:
                status.update(f"{task}: round {number} of {options.rounds}, {contestant.label}")
                contestant.take_turn(options.calls, counts=number > 0)
    count = forward_flops if task == "inference" else training_flops
    flops = {c.label: count(OTHER_MODELS.get(c.label, options.model), img_size=options.img_size) for c in contestants}
    limit = next(c for c in contestants if c.label == LIMIT)
    rate = matrix_product_flops(_setup(options)) / statistics.median(limit.seconds)
    others = [c for c in contestants if c is not limit]
    return {
        "matrix_products_flops_a_second": rate,
        "limit_images_a_second": rate / flops[LIMIT],
        "contestants": {
            c.label: {
                "images_a_second": options.batch / statistics.median(c.seconds),
                "share_of_limit": options.batch / statistics.median(c.seconds) * flops[c.label] / rate,
                "first_call_seconds": c.answers[0]["seconds"],
                "peak_bytes": max(answer["peak_bytes"] for answer in c.answers),
                "versions": c.answers[0]["versions"],
                "seconds": c.seconds,
                "times_as_fast_as": {o.label: _ratio(o, c) for o in others if o is not c},
            }
            for c in others
        },
    }


def _ratio(slow: Contestant, fast: Contestant) -> float:
    return statistics.median(s / f for s, f in zip(slow.seconds, fast.seconds, strict=True))


def _entries(options: Options) -> Iterator[tuple[str, str, bool]]:
    """Label, name in contestants.py, whether under `torch.compile`."""
    yield LIMIT, LIMIT, False
    for name in OURS:
        yield name, name, False
    yield IN_PARTS, "t2t_jax_in_parts", False
    yield "plain PyTorch", "baseline", False
    if options.official is not None:
        yield "authors' code", "official", False
        yield "authors' code, torch.compile", "official", True
    if options.timm_python.exists():
        yield "timm's DeiT-S", "deit_timm", False


@contextlib.contextmanager
def _started(label: str, name: str, compiled: bool, options: Options, task: Task) -> Iterator[Contestant]:
    python = str(options.timm_python.absolute()) if name in ("official", "deit_timm") else sys.executable
    setup = json.dumps(dataclasses.asdict(dataclasses.replace(_setup(options), compiled=compiled)))
    command = [python, "-m", "tools.benchmarks.worker", name, task, setup]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | HUGE_PAGES, **pipes) as process:
        try:
            yield Contestant(label, process)
        finally:
            process.kill()


def _setup(options: Options) -> Setup:
    official = None if options.official is None else str(options.official.absolute())
    return Setup(model=options.model, batch=options.batch, img_size=options.img_size, official=official)


def _machine() -> dict[str, Any]:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = names[0].partition(":")[2].strip() if names else platform.processor()
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}


def _table(task: Task, found: dict[str, Any]) -> Table:
    rate, limit = found["matrix_products_flops_a_second"] / 1e9, found["limit_images_a_second"]
    table = Table(title=f"{task}: matrix products run at {rate:.0f} GFLOP/s, alone {limit:.1f} images/s")
    contestants = found["contestants"]
    ours = [name for name in OURS if name in contestants]
    for column in ("", "images/s", "of the limit", "first call", *(f"{name} / it" for name in ours)):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for label, figures in contestants.items():
        ratios = [contestants[name]["times_as_fast_as"].get(label) for name in ours]
        table.add_row(
            label,
            f"{figures['images_a_second']:.2f}",
            f"{figures['share_of_limit']:.0%}",
            f"{figures['first_call_seconds']:.1f} s",
            *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
        )
    return table


if __name__ == "__main__":
    sys.exit(cli.run(main))
