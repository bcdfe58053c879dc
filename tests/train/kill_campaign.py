"""python -m tests.train.kill_campaign [--kills 20] [--in-write 3] [--json F]

Trains a small model once in peace and once killed (SIGKILL) again and again: while it starts, between and within
steps, inside checkpoint writes. Every restart is the same command. At the end all losses, accuracies and final
weights have to be those of the run in peace, bit for bit: exit code 1 if not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t2t_common import cli
from t2t_jax.checkpoint import CHECKPOINTS, SCRATCH, load_model_state
from t2t_jax.report import METRICS_FILE
from tests.small_data import TRAIN_IMAGES, write_idx_folder

BATCH_SIZE = 8
POLL_SECONDS = 0.001
PATIENCE_SECONDS = 600


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command line."""

    kills: int = 20
    """Kills in all; more where too few of them hit a checkpoint."""
    in_write: int = 3
    """Of them, kills that have to hit a checkpoint that is being written."""
    epochs: int = 60
    """Length of the run, in epochs of 8 steps."""
    seed: int = 0
    """Decides the moments, as far as chance decides them."""
    json: Path | None = None
    """Also write the result there."""


def campaign(options: Options, folder: Path) -> dict[str, Any]:
    """Both runs, in `folder`; what happened and what differs at the end.

    Raises:
        RuntimeError: a run failed by itself, or ended before it was killed often enough.
    """
    start = time.perf_counter()
    data = write_idx_folder(folder / "data")
    peaceful, killed = folder / "peaceful", folder / "killed"
    with running(data, peaceful, options, folder) as process:
        starting = wait_until(process, lambda: lines_in(peaceful) > 0)
        finish(process, folder)

    draws, moments, in_write = random.Random(options.seed), [], 0
    while len(moments) < options.kills or in_write < options.in_write:
        wants_write = options.kills - len(moments) <= options.in_write - in_write or draws.random() < 0.25
        with running(data, killed, options, folder) as process:
            moment = await_moment(process, killed, starting, draws, wants_write=wants_write)
            process.kill()
            if process.wait() != -9:
                raise RuntimeError(f"ended before kill {len(moments) + 1}, add --epochs: {log_of(folder)}")
        was_in_write = bool(list((killed / CHECKPOINTS).glob(f"{SCRATCH}[0-9]*/new*")))
        in_write += was_in_write
        moments.append({"when": moment, "lines": lines_in(killed), "inside_write": was_in_write})
        print(f"kill {len(moments)}: {moments[-1]}", flush=True)
    with running(data, killed, options, folder) as process:
        finish(process, folder)
    return {
        "kills": len(moments),
        "kills_inside_write": in_write,
        "steps": options.epochs * TRAIN_IMAGES // BATCH_SIZE,
        "lines_compared": lines_in(peaceful),
        "lines_that_differ": count_differing_lines(peaceful, killed),
        "arrays_that_differ": differing_arrays(peaceful, killed),
        "seconds": round(time.perf_counter() - start, 1),
        "moments": moments,
    }


@contextlib.contextmanager
def running(data: Path, workdir: Path, options: Options, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The run in `workdir` as a process of its own; killed at the end if it still runs."""
    fields = {
        **{"data": data, "workdir": workdir, "model": "t2t_vit_micro", "img-size": 16, "batch-size": BATCH_SIZE},
        **{"epochs": options.epochs, "log-every": 1, "eval-every": 3, "checkpoint-every": 2},
        **{"checkpoint-every-steps": 5, "data-threads": 2},
    }
    args = [f"--{name}={value}" for name, value in fields.items()]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "xla"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    with (folder / "log").open("ab") as log:
        command = [sys.executable, "-m", "t2t_jax.train", "digits", *args]
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **cache})
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def await_moment(
    process: subprocess.Popen[bytes], workdir: Path, starting: float, draws: random.Random, *, wants_write: bool
) -> str:
    """Returns when it is time to kill; what was waited for."""
    if wants_write:
        wait_until(process, lambda: any((workdir / CHECKPOINTS).glob(f"{SCRATCH}[0-9]*/new*")))
        time.sleep(draws.uniform(0, 0.02))
        return "checkpoint"
    if draws.random() < 0.25:
        wait_until(process, lambda: False, seconds=draws.uniform(0, starting))
        return "start"
    wait_until(process, lambda: (workdir / METRICS_FILE).exists())
    before, lines = (workdir / METRICS_FILE).stat().st_mtime_ns, draws.randint(1, 20)
    wait_until(process, lambda: (workdir / METRICS_FILE).stat().st_mtime_ns != before)  # it has forgotten and begun
    enough = lines_in(workdir) + lines
    wait_until(process, lambda: lines_in(workdir) >= enough)
    time.sleep(draws.uniform(0, 0.05))
    return "step"


def wait_until(process: subprocess.Popen[bytes], true: Callable[[], bool], seconds: float | None = None) -> float:
    """Seconds until `true()`, the end of the process or, if given, `seconds`."""
    start = time.perf_counter()
    limit = PATIENCE_SECONDS if seconds is None else seconds
    while not true() and process.poll() is None and time.perf_counter() - start < limit:
        time.sleep(POLL_SECONDS)
    return time.perf_counter() - start


def finish(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Waits for a run that nobody kills."""
    if process.wait(PATIENCE_SECONDS) != 0:
        raise RuntimeError(f"a run failed: {log_of(folder)}")


def log_of(folder: Path) -> str:
    """The end of what the runs said."""
    return (folder / "log").read_text()[-2000:]


def lines_in(workdir: Path) -> int:
    """Lines of the run's log of metrics; 0 without one."""
    path = workdir / METRICS_FILE
    return path.read_bytes().count(b"\n") if path.exists() else 0


TIMES = ("seconds", "images_per_second", "data_wait")
"""Fields of the metrics that no two runs share."""


def metrics(workdir: Path) -> list[dict[str, Any]]:
    """Lines of the run's log of metrics, without times."""
    lines = [json.loads(line) for line in (workdir / METRICS_FILE).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def count_differing_lines(one: Path, other: Path) -> int:
    """How many lines of metrics differ; a missing one counts too."""
    ours, theirs = metrics(one), metrics(other)
    return sum(a != b for a, b in zip(ours, theirs, strict=False)) + abs(len(ours) - len(theirs))


def differing_arrays(one: Path, other: Path) -> list[str]:
    """Names of the final weights, trained and averaged, that are not equal bit for bit."""
    names = []
    for use_ema in (False, True):
        ours, theirs = (load_model_state(path, use_ema=use_ema).arrays for path in (one, other))
        names += [name for name in ours.keys() | theirs.keys() if not same_bits(ours.get(name), theirs.get(name))]
    return sorted(names)


def same_bits(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    """Equal in shape, dtype and every bit."""
    if one is None or other is None:
        return False
    return (one.shape, one.dtype, one.tobytes()) == (other.shape, other.dtype, other.tobytes())


def main(args: Sequence[str]) -> int:
    """The command; its exit code."""
    options = cli.parse(Options, args, prog="python -m tests.train.kill_campaign", description=__doc__ or "")
    with tempfile.TemporaryDirectory() as folder:
        result = campaign(options, Path(folder))
    text = json.dumps(result, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")
    return cli.FAILED if result["lines_that_differ"] or result["arrays_that_differ"] else cli.OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
