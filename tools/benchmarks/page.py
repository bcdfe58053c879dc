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
from tools.benchmarks.chart import chart
from tools.benchmarks.levers import AS_IT_IS, LEVERS
from tools.benchmarks.speed import IN_PARTS

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

TEXT = """# Performance

Written by `python -m tools.benchmarks.page` from what lies in `tools/benchmarks/results`; `tools/benchmarks/README.md`
has the commands. All of it was run on {cores} CPU cores ({cpu}), nothing on a TPU or GPU. The authors' code is
[yitu-opensource/T2T-ViT](https://github.com/yitu-opensource/T2T-ViT).

## Speed on CPU

![Images a second of every implementation, inference and training](assets/speed.svg)

{model}, {img_size} x {img_size} pixels, float32, {batch} images. A training step is forward, backward, AdamW and the
average of all weights. The limit is the time of the matrix products alone, at the rate that one of them runs at.
Versions: {versions}; the authors' code and timm run in timm's environment.

{speed}

What we wanted, and what was measured: the median of {rounds} rounds, which are far apart on this machine. The last
column is the share of the limit that the wanted speed would be; near all of it only faster products would help, not
less around them.

{targets}

## What made it fast

- **Fences between blocks** (`t2t_jax/parallel/block_boundaries.py`). XLA's CPU compiler fuses the chain of residual
  sums into everything that reads it and computes it again there. On a CPU blocks stay calls of the program; elsewhere
  it is as it was.
- **A few images at once in evaluation** on a CPU, in both frameworks, two for each core: what lies between the layers
  stays in the caches (`t2t_common/evaluation/cpu_chunks.py`). In PyTorch it shows with larger batches than this one.
  The others are called with the whole batch, as their users call them. A training step does it where it is told to:
  "in parts" above is `--grad-accum-steps {parts}`, whose gradients are the whole batch's. It does not do so by itself,
  as each part has dropout masks of its own, which would then depend on the number of cores.
- **Attention that divides after the product with v**, 64 numbers for each token in place of 197, wherever no dropout
  falls on the weights; on CPUs alone. The sums stand in one loop with the product, also in training: XLA spreads that
  loop over the cores, while many small products by themselves run on one. In PyTorch the fused kernels run there.
- **GELU by erf**, as PyTorch computes it; `jax.nn.gelu` takes erfc, which costs another exponential and two divisions.
- **Tokens flattened around every Linear**: the gradient of its kernel is then one plain product. On a TPU only where
  its memory's tiles allow it without a copy: not with 197 tokens.
- **Soft split by a few whole slices**: cut into squares of the stride, four of them hold a window. A strided slice for
  each of its pixels takes several times as long, backward too, and so does a convolution; on CPUs alone.
- **LayerNorm in PyTorch's order of products**: one number for each token is scaled, not an array.
- **Huge pages** (`GLIBC_TUNABLES=glibc.malloc.hugetlb=1` before the command): XLA takes its memory anew in every step.
- **Fused AdamW** and an average in place, in PyTorch.

Tried without effect: optimisation barriers (the CPU compiler drops them before it fuses), a scan over blocks (faster
than no fences, slower than fences), a column of ones in v for the softmax's sum, both random features of the performer
in one product, queries, keys and values split before they are transposed, other schedulers and fusion types of XLA; in
PyTorch, views of all windows copied once in place of `nn.Unfold`.

## Against pixels

The T2T module of {scaling_model}, forward and backward, {scaling_batch} images, from `python -m
tools.benchmarks.scaling`. The performer is linear in its tokens; within 15 % was wanted.

{scaling}

T2T-ViT_t takes the softmax over 3136 tokens. Its layers hold the scores of 448 at a time and compute them once more in
the backward pass: the module of t2t_vit_t_14 needs {memory_parts:.0f} MB an image in training and
takes {memory_whole:.0f} MB in the textbook's form, {memory_ratio:.1f} times as much (four times was wanted).

## What else a user waits for

From `python -m tools.benchmarks.start`; each in a process of its own.

{start}

## On TPU, without a TPU

The training step of `t2t_jax.train` as `t2t_jax.compile` finds it, 1024 images in bfloat16. That is "compiles for and
fits", never a speed. "FLOPs now" are the matrix products that the step asks for with the code as it is
(`--export-only`); where they differ from those beside them, the program was compiled with older code. What is above 1
there are scores that are computed twice to save memory, and tokens that a kernel pads. The traffic is what a device
reads and writes by the compiler's count, which is not told of programs with loops, or by older code.

{tpu}

{batches}

What each lever does there, from `python -m tools.benchmarks.levers`: T2T modules and a block, forward and backward,
compiled with one lever undone at a time. Bytes that the program reads and writes, and what it holds besides its
arguments. Above 1, the lever saves them. Of a loop over rows one pass is counted in the traffic, of a kernel what goes
in and out. Three forms that pay on a CPU cost there, as their rows show ("as on CPU"): which one is traced is chosen
in `t2t_jax/ops/platform.py`.

The softmax of T2T-ViT_t over 3136 tokens is a kernel in the training step and in evaluation, JAX's own (splash
attention), on each device under `shard_map`: no scores reach a TPU's main memory. One of its seven products has a
float32 factor, the exponentials. Interpreted on a CPU it gives what the formula gives; it was compiled for v5e, v5p and
v6e. For the blocks' 197 tokens it would not pay: they would be padded to 256.

{levers}
"""


def render(results: Path = RESULTS) -> str:
    """The page.

    Raises:
        FileNotFoundError: results are missing.
    """
    speed = json.loads((results / "speed.json").read_text())
    start, scaling, parts, whole = (
        json.loads((results / f"{name}.json").read_text())
        for name in ("start", "scaling", "scores_in_parts", "scores_at_once")
    )
    compiled, lowered, batches, levers = (
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
        scaling_model=scaling["options"]["model"],
        scaling_batch=scaling["options"]["batch"],
        scaling="\n".join(_scaling(scaling)),
        memory_parts=memory_parts / 1e6,
        memory_whole=memory_whole / 1e6,
        memory_ratio=memory_whole / memory_parts,
        start="\n".join(_start(start)),
        levers="\n".join(_levers(list(levers.values()))),
        tpu="\n".join(_tpu([(report, lowered[name]) for name, report in compiled.items()])),
        batches=_batches(list(batches.values())),
    )


def _versions(contestants: dict[str, Any]) -> str:
    sets = {name: ", ".join(f"{m} {v}" for m, v in c["versions"].items()) for name, c in contestants.items()}
    return "; ".join(f"{name} {sets[name]}" for name in ("t2t_jax", "t2t_torch", "authors' code"))


def _header(*columns: str) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"


def _speed(tasks: dict[str, Any]) -> Iterator[str]:
    yield from _header("", "inference, images/s", "of the limit", "training, images/s", "of the limit", "first step")
    for name, training in tasks["training"]["contestants"].items():
        rows = tasks["inference"]["contestants"].get(name), training
        cells = [f"{row['images_a_second']:.2f} | {row['share_of_limit']:.0%}" if row else " | " for row in rows]
        yield f"| {name} | {' | '.join(cells)} | {training['first_call_seconds']:.0f} s |"


def _targets(tasks: dict[str, Any]) -> Iterator[str]:
    yield from _header("", "wanted", "measured", "least and most of a round", "", "of the limit")
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


def _scaling(report: dict[str, Any]) -> Iterator[str]:
    yield from _header("pixels", "ms an image", "MB an image", "time a pixel", "memory a pixel")
    batch, sizes = report["options"]["batch"], {int(size): figures for size, figures in report["sizes"].items()}
    first = min(sizes)
    for size, figures in sizes.items():
        shares = [figures[k] / sizes[first][k] * first**2 / size**2 for k in ("seconds", "temporary_bytes")]
        cost = f"{figures['seconds'] / batch * 1e3:.0f} | {figures['temporary_bytes'] / batch / 1e6:.0f}"
        yield f"| {size} x {size} | {cost} | {shares[0]:.2f} | {shares[1]:.2f} |"


def _start(found: dict[str, list[float]]) -> Iterator[str]:
    yield from _header("", "median, s", "least, s")
    for name, seconds in found.items():
        yield f"| {name} | {statistics.median(seconds):.1f} | {min(seconds):.1f} |"


def _levers(reports: Sequence[dict[str, Any]]) -> Iterator[str]:
    columns = "model", "images", "part", "lever", "undone"
    yield from _header(*columns, "MB an image", "of that with it", "temporary MB an image", "of that with it")
    for report in reports:
        for part, rows in report["parts"].items():
            for name, row in rows.items():
                figures = [
                    f"{row[key] / 1e6:.2f} | {row[key] / rows[AS_IT_IS][key]:.2f}"
                    for key in ("bytes", "temporary_bytes")
                ]
                undone = LEVERS[name].undone if name in LEVERS else ""
                cells = (report["model"], str(report["batch"]), part, name, undone, *figures)
                yield f"| {' | '.join(cells)} |"


def _tpu(reports: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> Iterator[str]:
    """Of what was compiled, and of the same step lowered now."""
    columns = "model", "TPUs", "mesh", "memory a device", "of it temporary", "traffic an image", "FLOPs / analytic"
    yield from _header(*columns, "messages", "FLOPs now", "with the global batch", "compiled in")
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
    options = cli.parse(Options, args, prog="python -m tools.benchmarks.page", description=__doc__ or "")
    write_text(options.out, render(options.results))
    write_text(options.out.parent / CHART, chart(json.loads((options.results / "speed.json").read_text())))
    return cli.OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
