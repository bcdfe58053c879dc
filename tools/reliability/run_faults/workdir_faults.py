"""A workdir that is harmed while its run goes on, or before the run is continued: by hand, or by another run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from t2t_common.workdir.folder import CHECKPOINTS
from t2t_common.workdir.lock import LOCK_FILE, Lock
from t2t_common.workdir.writers import METRICS_FILE
from tools.reliability.run_faults.disk_faults import SECONDS
from tools.reliability.run_faults.runs import Ended, Lab, NotSurvivedError, clear_end


def log_deleted(lab: Lab, workdir: Path) -> Iterator[Ended | None]:
    """The log is deleted while the run writes it: told, put back."""
    with lab.start(workdir) as run:
        run.await_lines(3)
        (workdir / METRICS_FILE).unlink()
        yield clear_end(run, f"^error: .*{METRICS_FILE} was deleted while the run wrote it, and put back", SECONDS)


def lock_taken(lab: Lab, workdir: Path) -> Iterator[Ended | None]:
    """The lock is removed, and another takes it: the run ends, and writes no more."""
    with lab.start(workdir) as run:
        run.await_lines(3)
        (workdir / LOCK_FILE).unlink()
        other = Lock(workdir)
        ended = clear_end(run, "^error: the lock .* was removed during the run", SECONDS)
        other.release()
        yield ended


def workdir_gone(lab: Lab, workdir: Path) -> Iterator[Ended | None]:
    """The workdir is moved away, which to the run is as if it were deleted, and is put back after its end."""
    elsewhere = workdir.with_name(f"{workdir.name}-elsewhere")
    with lab.start(workdir) as run:
        run.await_lines(3)
        workdir.rename(elsewhere)
        ended = clear_end(run, "^error: (.* was deleted during the run|cannot write )", SECONDS)
    if workdir.exists():
        raise NotSurvivedError(f"made anew: {sorted(path.name for path in workdir.rglob('*'))}")
    elsewhere.rename(workdir)
    yield ended


def checkpoints_renamed(lab: Lab, workdir: Path) -> Iterator[Ended | None]:
    """All checkpoints have other names: the run does not begin anew over its log, and goes on once they are back."""
    with lab.start(workdir) as run:
        run.wait_until(lambda: any((workdir / CHECKPOINTS).glob("[0-9]*")))
        run.await_lines(1)
        run.kill()
    folder, before = workdir / CHECKPOINTS, (workdir / METRICS_FILE).read_bytes()
    for path in folder.glob("[0-9]*"):
        path.rename(path.with_name(f"saved-{path.name}"))
    with lab.start(workdir, log="renamed") as run:
        yield clear_end(run, f"^error: .*{CHECKPOINTS} has no checkpoint, but 'saved-", SECONDS)
    if (workdir / METRICS_FILE).read_bytes() != before:
        raise NotSurvivedError("the log is not what it was")
    for path in folder.glob("saved-*"):
        path.rename(path.with_name(path.name.removeprefix("saved-")))
