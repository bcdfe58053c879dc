"""Disks that are full, read-only or gone. Each fault leaves a run that the same command has to be able to continue."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from t2t_common.workdir.folder import CHECKPOINTS
from tools.reliability.run_faults.mounts import disk, full, read_only, vanish
from tools.reliability.run_faults.runs import Ended, Lab, clear_end

SECONDS = 300.0
"""A run that cannot go on has ended by then, on a machine that is busy too."""
CANNOT_WRITE = "^error: cannot write"

Trial = Callable[[Lab, Path], Iterator[Ended | None]]
"""(where to try, workdir) -> each time a fault was done: how the run ended, None where it goes on. Afterwards, the run
in the workdir can be continued."""


def disk_full(lab: Lab, workdir: Path) -> Iterator[Ended | None]:
    """No byte left while it trains; room for a line but for no checkpoint; no byte left when it starts."""
    with disk(workdir):
        for free in (0, 100_000):
            with lab.start(workdir) as run:
                run.await_lines(8)
                with full(workdir, free):
                    yield clear_end(run, CANNOT_WRITE, SECONDS)
        with full(workdir, 0), lab.start(workdir) as run:
            yield clear_end(run, CANNOT_WRITE, SECONDS)
        lab.finish(workdir)
        keep(workdir)


def folder_read_only(lab: Lab, workdir: Path) -> Iterator[Ended | None]:
    """The folder of the checkpoints while it trains; the workdir when it starts."""
    with lab.start(workdir) as run:
        run.await_lines(8)
        with read_only(workdir / CHECKPOINTS):
            yield clear_end(run, CANNOT_WRITE, SECONDS)
    with read_only(workdir), lab.start(workdir) as run:
        yield clear_end(run, CANNOT_WRITE, SECONDS)


def data_vanish(lab: Lab, workdir: Path) -> Iterator[Ended | None]:
    """The disk of the images is torn out in the middle of an epoch: read by threads, by a worker process."""
    for workers in (0, 1):
        with disk(lab.folder / "torn") as torn:
            shutil.copytree(lab.data, torn / "data")
            with lab.start(workdir, f"--data-workers={workers}", data=torn / "data") as run:
                run.await_lines(4)
                vanish(torn)
                yield clear_end(run, "^error: cannot read .*: check the disk", SECONDS)
    with lab.start(workdir, data=torn / "data") as run:
        yield clear_end(run, "^error: no data folder", SECONDS)


def keep(workdir: Path) -> None:
    """Copies what is on a disk, so that it stays when the disk goes."""
    copy = workdir.with_name(f"{workdir.name}-copy")
    shutil.copytree(workdir, copy, symlinks=True)
    vanish(workdir)
    workdir.rmdir()
    copy.rename(workdir)
