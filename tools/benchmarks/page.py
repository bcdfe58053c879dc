"""python -m tools.benchmarks.page [--results FOLDER] [--out FILE]

Writes docs/performance.md and its picture from what lies in tools/benchmarks/results.
"""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from t2t_common.evaluation.cpu_chunks import num_chunks
from t2t_common.io import cli
from t2t_common.io.files import write_text
from tools.benchmarks import levers, scaling, start
from tools.benchmarks.chart import chart
from tools.benchmarks.speed import IN_PARTS
from tools.command import parse
from tools.tables import markdown

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "tools" / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
CHART = Path("assets", "speed.svg")

TARGETS = (
    ("inference", "t2t_jax", "authors' code", 1.25),
    ("inference", "t2t_jax", "authors' code, torch.compile", 1.1),
    ("training", "t2t_jax", "authors' code", 1.0),
    ("training", IN_PARTS, "authors' code", 1.0),
    ("inference", "t2t_torch", "authors' code", 1.15),
    ("training", "t2t_torch", "authors' code", 1.15),
)
"""Task, ours, theirs, how many times as fast we wanted ours to be."""
SHARES = (("inference", "t2t_jax", 0.9), ("training", "t2t_jax", 0.8), ("training", IN_PARTS, 0.8))
"""Task, ours, share of the limit that it was to reach."""

TEXT = Path(__file__).with_name("page.md").read_text(encoding="utf-8")
"""The page, with the names of figures in braces."""


def render(results: Path = RESULTS) -> str:
    """The page.

    Raises:
        FileNotFoundError: results are missing.
    """
    speed = json.loads((results / "speed.json").read_text())
    waits, pixels, parts, whole = (
        json.loads((results / f"{name}.json").read_text())
        for name in ("start", "scaling", "scores_in_parts", "scores_at_once")
    )
    compiled, lowered, batches, undone = (
        {path.name: json.loads(path.read_text()) for path in sorted((results / folder).glob("*.json"))}
        for folder in ("tpu", "lowered", "batches", "levers")
    )
    batch, side = (speed["setup"][name] for name in ("batch", "img_size"))
    memory_parts, memory_whole = (x["sizes"]["224"]["temporary_bytes"] / x["options"]["batch"] for x in (parts, whole))
    return TEXT.format(
        **speed["setup"],
        **speed["machine"],
        versions=_versions(speed["tasks"]["training"]["contestants"]),
        speed="\n".join(_speed(speed["tasks"])),
        targets="\n".join(_targets(speed["tasks"])),
        parts=num_chunks(batch, side, side, cores=speed["machine"]["cores"]),
        rounds=len(speed["tasks"]["inference"]["contestants"]["t2t_jax"]["seconds"]),
        scaling_model=pixels["options"]["model"],
        scaling_batch=pixels["options"]["batch"],
        scaling="\n".join(markdown(scaling.COLUMNS, scaling.rows(pixels))),
        memory_parts=memory_parts / 1e6,
        memory_whole=memory_whole / 1e6,
        memory_ratio=memory_whole / memory_parts,
        start="\n".join(markdown(start.COLUMNS, start.rows(waits))),
        levers="\n".join(_levers(list(undone.values()))),
        tpu="\n".join(_tpu([(report, lowered[name]) for name, report in compiled.items()])),
        batches=_batches(list(batches.values())),
    )


def _versions(contestants: dict[str, Any]) -> str:
    sets = {name: ", ".join(f"{m} {v}" for m, v in c["versions"].items()) for name, c in contestants.items()}
    return "; ".join(f"{name} {sets[name]}" for name in ("t2t_jax", "t2t_torch", "authors' code"))


def _speed(tasks: dict[str, Any]) -> Iterator[str]:
    columns = "inference, images/s", "of the limit", "training, images/s", "of the limit", "first step"
    yield from markdown(("", *columns), ())
    for name, training in tasks["training"]["contestants"].items():
        rows = tasks["inference"]["contestants"].get(name), training
        cells = [f"{row['images_a_second']:.2f} | {row['share_of_limit']:.0%}" if row else " | " for row in rows]
        yield f"| {name} | {' | '.join(cells)} | {training['first_call_seconds']:.0f} s |"


def _targets(tasks: dict[str, Any]) -> Iterator[str]:
    yield from markdown(("", "wanted", "measured", "least and most of a round", "", "of the limit"), ())
    for task, ours, theirs, wanted in TARGETS:
        mine, other = (tasks[task]["contestants"][name] for name in (ours, theirs))
        found, rounds = mine["times_as_fast_as"][theirs], list(map(operator.truediv, other["seconds"], mine["seconds"]))
        limit = f"{wanted * other['share_of_limit']:.0%}"
        yield f"| {task}: {ours} / {theirs} | {wanted:.2f} | {_found(found, rounds, wanted)} | {limit} |"
    for task, ours, wanted in SHARES:
        mine = tasks[task]["contestants"][ours]
        found, usual = mine["share_of_limit"], statistics.median(mine["seconds"])
        rounds = [found * usual / seconds for seconds in mine["seconds"]]
        yield f"| {task}: {ours} / limit | {wanted:.2f} | {_found(found, rounds, wanted)} | {wanted:.0%} |"


def _found(found: float, rounds: Sequence[float], wanted: float) -> str:
    verdict = "reached" if found >= wanted else "not reached"
    return f"{found:.2f} | {min(rounds):.2f} to {max(rounds):.2f} | {verdict}"


def _levers(reports: Sequence[dict[str, Any]]) -> Iterator[str]:
    rows = ((report["model"], str(report["batch"]), *row) for report in reports for row in levers.rows(report["parts"]))
    return markdown(("model", "images", *levers.COLUMNS), rows)


def _tpu(reports: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> Iterator[str]:
    """Of what was compiled, and of the same step lowered now."""
    columns = "model", "TPUs", "mesh", "memory a device", "of it temporary", "traffic an image", "FLOPs / analytic"
    yield from markdown((*columns, "messages", "FLOPs now", "with the global batch", "compiled in"), ())
    for r, now in reports:
        memory, gib = r["memory"], 2**30
        mesh = ", ".join(f"{axis}={size}" for axis, size in r["mesh"].items())
        messages = ", ".join(f"{count} {kind} {size / 1e6:.0f} MB" for kind, (count, size) in r["collectives"].items())
        cells = (
            r["model"],
            r["topology"],
            mesh,
            f"{memory['total'] / gib:.2f} of {r['hbm'] / gib:.0f} GiB",
            f"{memory['temp'] / gib:.2f} GiB",
            _traffic(r),
            f"{r['product_flops'] / r['analytic_flops']:.3f}",
            messages,
            f"{now['product_flops'] / now['analytic_flops']:.3f}",
            str(len(r["carry_batch"])),
            f"{r['compile_seconds']:.0f} s",
        )
        yield f"| {' | '.join(cells)} |"


def _traffic(report: dict[str, Any]) -> str:
    if report.get("bytes_accessed") is None:
        return "not told"
    images = report["batch"] / math.prod(report["mesh"].values())
    return f"{report['bytes_accessed'] / images / 1e6:.0f} MB"


def _batches(reports: Sequence[dict[str, Any]]) -> str:
    """The largest batch that was seen to fit, and the smallest that was seen not to, if any was."""
    largest = max((r for r in reports if r["fits"]), key=lambda r: r["batch"])
    beyond = min((r["batch"] for r in reports if not r["fits"]), default=None)
    mesh = ", ".join(f"{axis}={size}" for axis, size in largest["mesh"].items())
    return (
        f"The largest batch of {largest['model']} that was seen to fit on {largest['topology']} ({mesh}) has "
        f"{largest['batch']} images,\nwith {largest['memory']['total'] / 2**30:.2f} GiB a device"
        + (f"; {beyond} do not fit." if beyond else ".")
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command line."""

    results: Path = RESULTS
    """Folder of what was measured."""
    out: Path = PAGE
    """The page to write; its picture goes into assets/ beside it."""


def main(args: Sequence[str]) -> int:
    options = parse(Options, args, "tools.benchmarks.page", __doc__)
    write_text(options.out, render(options.results))
    write_text(options.out.parent / CHART, chart(json.loads((options.results / "speed.json").read_text())))
    return cli.OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
