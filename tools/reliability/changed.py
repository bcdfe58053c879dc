"""Runs that go on where something is not as it was: their data, or the number of their processes."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tools.reliability.run_faults.disk_faults import SECONDS
from tools.reliability.run_faults.runs import Ended, Lab, NotSurvivedError, clear_end, metrics

CLOSE = 0.01
"""Share by which losses of other processes may differ: in t2t_torch each draws dropout of its own."""


def _flip(path: Path) -> None:
    """One bit, in place; size and time stay."""
    before, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _halve(folder: Path) -> None:
    for path in sorted(folder.rglob("*.png"))[::2]:
        path.unlink()


CHANGES: Mapping[str, Callable[[Path], object]] = {
    "an image more": lambda data: shutil.copy(data / "train/class0/0.png", data / "train/class0/1000.png"),
    "an image less": lambda data: (data / "train/class1/1.png").unlink(),
    "half of the images": lambda data: _halve(data / "train"),
    "an image in another class": lambda data: (data / "train/class1/1.png").rename(data / "train/class2/1.png"),
    "a class renamed": lambda data: [
        (data / split / "class3").rename(data / split / "four") for split in ("train", "val")
    ],
    "a bit of an image": lambda data: _flip(data / "train/class0/0.png"),
    "a validation image less": lambda data: (data / "val/class0/0.png").unlink(),
}


def data_changes(lab: Lab, workdir: Path) -> Iterator[Ended | None]:
    """The data change while a run is stopped: refused with the difference. With the data as they were it goes on."""
    with lab.start(workdir) as run:
        run.await_lines(8)
        os.kill(run.processes[0].pid, signal.SIGTERM)
        yield clear_end(run, "^stopped by SIGTERM, saved at step", SECONDS, code=0)
    for number, change in enumerate(CHANGES.values()):
        data = lab.folder / f"{workdir.name}-data-{number}"
        change(shutil.copytree(lab.data, data))
        with lab.start(workdir, data=data, log=data.name) as run:
            # Other names of classes are seen first: they decide what the outputs of the head stand for.
            refused = f"^error: ({workdir} holds a run on other data|the run was started with other classes)"
            yield clear_end(run, refused, SECONDS)


def other_processes(lab: Lab, workdir: Path) -> Iterator[Ended | None]:
    """Begun by two processes and finished by one, and the other way: every step once, with the losses of all others."""
    for first, then in ((2, 1), (1, 2)):
        elsewhere = workdir.with_name(f"{workdir.name}-{first}-{then}")
        with dataclasses.replace(lab, processes=first).start(elsewhere) as run:
            run.await_lines(8)
            os.kill(run.processes[0].pid, signal.SIGTERM)
            run.expect_success()
        dataclasses.replace(lab, processes=then).finish(elsewhere, log=f"{elsewhere.name}-then")
        compare_losses(elsewhere, lab.undisturbed)
        yield None


def compare_losses(workdir: Path, undisturbed: Path) -> None:
    """Raises NotSurvivedError if a step is missing, there twice, or has another loss."""
    ours, theirs = (
        [(line["step"], line["loss"]) for line in metrics(folder) if "loss" in line]
        for folder in (workdir, undisturbed)
    )
    if [step for step, _ in ours] != [step for step, _ in theirs]:
        raise NotSurvivedError(f"steps {[step for step, _ in ours]} in place of {[step for step, _ in theirs]}")
    for (step, loss), (_, expected) in zip(ours, theirs, strict=True):
        if abs(loss - expected) > CLOSE * expected:
            raise NotSurvivedError(f"loss {loss} at step {step} in place of {expected}")
