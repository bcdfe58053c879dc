"""python -m tools.reliability.faults [--kills 50] [--only FAULT ...] [--json FILE]

Harms small training runs, in JAX and in PyTorch, in one process and in two: kills them again and again, fills their
disk, tears out that of their images, stops their workers, sends signals, turns back the clock. Each time they have to
go on, or to end in bounded time with one line that says why; the same command then continues them; and what they leave
at the end has to be, bit for bit, what a run leaves that nobody harmed. Exit code 1 if not.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from t2t_common.io import cli
from tools.command import parse
from tools.reliability import changed, record
from tools.reliability.run_faults import disk_faults, group_faults, process_faults, workdir_faults
from tools.reliability.run_faults.disk_faults import Trial
from tools.reliability.run_faults.kills import kill_often
from tools.reliability.run_faults.mounts import enter_namespace
from tools.reliability.run_faults.runs import PACKAGES, Lab, NotSurvivedError, Package

KILLS = "kill -9"
FAULTS: Mapping[str, Trial] = {
    "disk full": disk_faults.disk_full,
    "folder read-only": disk_faults.folder_read_only,
    "data disk vanishes": disk_faults.data_vanish,
    "data worker dies": process_faults.worker_dies,
    "data worker hangs": process_faults.worker_hangs,
    "kill -9 beside a worker that hangs": process_faults.killed_beside_worker,
    "second writer": process_faults.second_writer,
    "signal twice": process_faults.sigterm_twice,
    "clock jumps": process_faults.clock_jumps,
    "data change": changed.data_changes,
    "group is asked to stop": group_faults.group_is_asked_to_stop,
    "group is asked to stop twice": group_faults.group_is_asked_twice,
    "kill -9 leaves nobody": group_faults.killed_leaves_nobody,
    "data timeout leaves nobody": group_faults.timeout_leaves_nobody,
    "log deleted": workdir_faults.log_deleted,
    "lock taken by another": workdir_faults.lock_taken,
    "workdir gone": workdir_faults.workdir_gone,
    "checkpoints renamed": workdir_faults.checkpoints_renamed,
}
FAULTS_OF_TWO: Mapping[str, Trial] = {
    "one of two processes dies": process_faults.peer_dies,
    "one of two processes is asked to stop": process_faults.one_of_two_is_asked_to_stop,
    "another number of processes": changed.other_processes,
}
EPOCHS_PER_KILL = 2
IN_WRITE = 0.2
"""Share of the kills that have to hit a checkpoint while it is being written."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command line."""

    kills: int = 50
    """Kills in all, half of them of either package."""
    only: tuple[str, ...] = ()
    """Names of faults to try; all by default."""
    packages: tuple[Package, ...] = PACKAGES
    """Whose training is harmed."""
    seed: int = 0
    """Decides the moments of the kills, as far as chance decides them."""
    json: Path = record.RESULTS / "faults.json"
    """File for the result; what it holds of other faults and packages stays."""


def campaign(options: Options, folder: Path, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """A row for every fault and package: how often it was tried, what it did, what differs at the end."""
    for package in options.packages:
        if wanted(options, KILLS):
            kills = -(-options.kills // len(options.packages))
            lab = Lab(package, folder / f"{package}-kills", epochs=max(10, EPOCHS_PER_KILL * kills))
            yield kill(lab, kills, options.seed, say)
        for processes, faults in ((1, FAULTS), (2, FAULTS_OF_TWO)):
            lab = Lab(package, folder / package, processes)
            for name, trial in faults.items():
                if wanted(options, name):
                    yield (row := harm(lab, name, trial))
                    say(f"{package}: {name}: {summary(row)}")


def wanted(options: Options, name: str) -> bool:
    """Whether a fault is to be tried."""
    return not options.only or name in options.only


def kill(lab: Lab, kills: int, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """The row of the kills."""
    lab.folder.mkdir()
    row: dict[str, Any] = {"fault": KILLS, "package": lab.package, "times": kills, "survived": 0}
    start = time.perf_counter()
    try:
        row |= kill_often(lab, kills, round(IN_WRITE * kills), seed=seed, say=say)
        row["survived"] = 0 if row["lines_that_differ"] or row["arrays_that_differ"] else row["times"]
    except NotSurvivedError as error:
        row["failure"] = str(error)
    return {**row, "seconds": round(time.perf_counter() - start)}


def harm(lab: Lab, name: str, trial: Trial) -> dict[str, Any]:
    """The row of one fault: done to a run, which is continued and compared."""
    lab.folder.mkdir(exist_ok=True)
    workdir = lab.folder / f"{lab.processes}-{name.replace(' ', '-')}"
    row: dict[str, Any] = {"fault": name, "package": lab.package, "times": 0, "survived": 0}
    start, ends = time.perf_counter(), []
    try:
        for ended in trial(lab, workdir):
            row["times"] += 1
            ends += [] if ended is None else [ended]
        lab.finish(workdir)
        row |= lab.compare(workdir)
        row["survived"] = 0 if row["lines_that_differ"] or row["arrays_that_differ"] else row["times"]
    except NotSurvivedError as error:
        row |= {"times": row["times"] + 1, "survived": row["times"], "failure": str(error)}
    row["most_seconds_until_the_last_words"] = max((ended.seconds for ended in ends), default=None)
    row["last_words"] = [ended.words.replace(str(lab.folder), "...")[:200] for ended in ends]
    return {**row, "seconds": round(time.perf_counter() - start)}


def summary(row: Mapping[str, Any]) -> str:
    """A row in words."""
    if "failure" in row:
        return f"NOT SURVIVED: {row['failure']}"
    differing = row["lines_that_differ"] + len(row["arrays_that_differ"])
    return f"survived {row['survived']} of {row['times']}, {differing} lines and arrays differ"


def main(args: Sequence[str]) -> int:
    """The command; its exit code."""
    options = parse(Options, args, "tools.reliability.faults", __doc__)
    if strangers := set(options.only) - {KILLS, *FAULTS, *FAULTS_OF_TWO}:
        raise ValueError(
            f"no fault {sorted(strangers)[0]!r}: choose among {', '.join((KILLS, *FAULTS, *FAULTS_OF_TWO))}"
        )
    process_faults.find_faketime()
    enter_namespace("tools.reliability.faults", args)
    console = Console(soft_wrap=True, highlight=False)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for row in campaign(options, Path(folder), console.print):
            save(options.json, row)
    figures = json.loads(options.json.read_text())
    console.print(f"survived {figures['faults_survived']} of {figures['faults_tried']} faults, {options.json}")
    return cli.OK if figures["faults_survived"] == figures["faults_tried"] else cli.FAILED


def save(path: Path, row: Mapping[str, Any]) -> None:
    """Puts a row into the result, in the place of what it held of this fault and package, and counts anew."""
    old = json.loads(path.read_text())["faults"] if path.exists() else []
    order = [*itertools.product((KILLS, *FAULTS, *FAULTS_OF_TWO), PACKAGES)]
    found = {(row["fault"], row["package"]): _without_places(row) for row in (*old, row)}
    rows = [found[key] for key in order if key in found]
    figures = {
        "faults_tried": sum(row["times"] for row in rows),
        "faults_survived": sum(row["survived"] for row in rows),
        "lines_compared": sum(row.get("lines_compared", 0) for row in rows),
        "lines_that_differ": sum(row.get("lines_that_differ", 0) for row in rows),
        "arrays_compared": sum(row.get("arrays_compared", 0) for row in rows),
        "arrays_that_differ": sum(len(row.get("arrays_that_differ", [])) for row in rows),
        "faults": rows,
    }
    seconds = sum(row["seconds"] for row in rows)
    record.write(path, "python -m tools.reliability.faults", figures, seconds=seconds)


def _without_places(row: Mapping[str, Any]) -> dict[str, Any]:
    """What failed in one line, without folders of the machine."""
    failure = " ".join(re.sub(r"/[\w./-]*/", ".../", row.get("failure", "")).split())
    return {**row, "failure": failure[:200]} if failure else dict(row)


if __name__ == "__main__":
    sys.exit(cli.run(main))
