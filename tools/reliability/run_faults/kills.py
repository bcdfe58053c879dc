"""SIGKILL again and again: while a run starts, between and within steps, inside checkpoint writes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from t2t_common.workdir.folder import CHECKPOINTS
from tools.reliability.run_faults.runs import Lab, NotSurvivedError, Running, count_lines

UNFINISHED = (".unfinished-[0-9]*/new*", ".*.pth.*/*.pth")
"""What lies beside the checkpoints while t2t_jax, t2t_torch writes one."""


def kill_often(lab: Lab, kills: int, in_write: int, *, seed: int = 0, say: Callable[[str], None]) -> dict[str, Any]:
    """One run, killed `kills` times, `in_write` of them while a checkpoint is being written; beside the undisturbed
    one. Every restart is the same command.

    Raises:
        NotSurvivedError: it failed by itself, or ended before it was killed often enough.
    """
    say(f"{lab.package}: undisturbed run in {lab.undisturbed}")
    workdir, draws, done, hits = lab.folder / f"{lab.package}-killed", random.Random(seed), 0, 0
    while done < kills or (hits < in_write and done < 2 * kills):
        wants_write = kills - done <= in_write - hits or draws.random() < 0.3
        with lab.start(workdir) as run:
            moment = await_moment(run, lab.starting, draws, wants_write=wants_write)
            if run.has_ended():
                raise NotSurvivedError(f"ended before kill {done + 1}: {run.said()[-2000:]}")
            run.kill()
        hit, done = is_writing(workdir), done + 1
        hits += hit
        say(f"{lab.package}: kill {done}, at line {count_lines(workdir)}, {moment}{', in a write' if hit else ''}")
    lab.finish(workdir)
    return {"times": done, "inside_a_checkpoint": hits, **lab.compare(workdir)}


def await_moment(run: Running, starting: float, draws: random.Random, *, wants_write: bool) -> str:
    """Returns when it is time to kill; what was waited for. `starting`: seconds until the first line of metrics."""
    if not wants_write and draws.random() < 0.25:
        run.wait_until(lambda: False, seconds=draws.uniform(0, starting))
        return "starting"
    if wants_write:
        run.await_lines(1)
        run.wait_until(lambda: is_writing(run.workdir))
        time.sleep(draws.choice([0, 0, 0.002, 0.02]))
        return "saving"
    run.await_lines(draws.randint(1, 10))
    time.sleep(draws.uniform(0, 0.05))
    return "training"


def is_writing(workdir: Path) -> bool:
    """Whether a checkpoint is being written, or was left half written."""
    return any(any((workdir / CHECKPOINTS).glob(pattern)) for pattern in UNFINISHED)
