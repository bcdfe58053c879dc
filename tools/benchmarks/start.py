"""python -m tools.benchmarks.start [--rounds N] [--json FILE]

What a user waits for before anything is computed: imports, the compilation of a training step; and how long the proof
takes, and the demo. Every run is a process of its own; figures are medians, in seconds.
"""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from t2t_common.io import cli
from tools.command import parse, save
from tools.tables import show

ROOT = Path(__file__).parents[2]

COMPILE = """
import sys, time
import jax, optax
from flax import nnx
import t2t_jax
from t2t_jax.training.optim import adamw, decay_mask
from t2t_jax.state import split_model
from t2t_jax.training.step import init_state, make_train_step

model = nnx.eval_shape(lambda: t2t_jax.create_model(sys.argv[1], rngs=nnx.Rngs(0)))
model.train()
graphdef, params, buffers = split_model(model)
tx = adamw(5e-4, weight_decay=0.05, mask=decay_mask(params, model.no_weight_decay()))
step = make_train_step(graphdef, tx, ema_decay=0.99996)
state = jax.eval_shape(lambda p, b: init_state(p, b, tx, seed=0, average=True), params, buffers)
side = model.img_size
batch = {"image": jax.ShapeDtypeStruct((16, *side, 3), "float32"), "label": jax.ShapeDtypeStruct((16,), "int32")}
start = time.perf_counter()
step.lower(state, batch).compile()
print(time.perf_counter() - start)
"""
"""Prints the seconds of tracing, lowering and compiling the training step of a model, 16 images."""
FOLDER = "FOLDER"
"""Among arguments, a new folder of each run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command line."""

    model: str = "t2t_vit_14"
    """Whose training step and proof are timed."""
    rounds: int = 3
    """Runs of each, after one that does not count."""
    json: Path | None = None
    """File for all figures."""


def runs(model: str) -> dict[str, list[str]]:
    """What is timed -> arguments for Python."""
    imports = {f"import {name}": ["-c", f"import {name}"] for name in ("t2t_config", "t2t_torch", "t2t_jax", "parity")}
    check = ["-m", "parity", "check", model]
    return {
        **imports,
        f"training step of {model}, traced and compiled": ["-c", COMPILE, model],
        f"parity check {model} --level forward": [*check, "--level", "forward"],
        f"parity check {model}": check,
        "make demo, once it is installed": ["examples/demo.py", FOLDER],
    }


def measure(arguments: Sequence[str]) -> float:
    """Seconds of one run: those that it prints, if it is a `COMPILE`, else of the whole process.

    Raises:
        ValueError: it failed; the message says why.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *(folder if argument == FOLDER else argument for argument in arguments)]
        start = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
    if done.returncode:
        raise ValueError(f"{' '.join(arguments[:3])} failed: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout) if COMPILE in arguments else seconds


COLUMNS = ("", "median, s", "least, s")


def rows(found: Mapping[str, Sequence[float]]) -> Iterator[tuple[str, ...]]:
    """What was measured as rows of `COLUMNS`."""
    for name, seconds in found.items():
        yield name, f"{statistics.median(seconds):.1f}", f"{min(seconds):.1f}"


def main(args: Sequence[str]) -> int:
    options = parse(Options, args, "tools.benchmarks.start", __doc__)
    if options.rounds < 1:
        raise ValueError(f"--rounds {options.rounds}: at least one has to count")
    console, found = Console(), {}
    for name, arguments in runs(options.model).items():
        with console.status(name):
            found[name] = [measure(arguments) for _ in range(1 + options.rounds)][1:]
    show(COLUMNS, rows(found))
    save(options.json, found)
    return cli.OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
