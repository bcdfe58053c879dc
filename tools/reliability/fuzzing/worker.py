"""python -m tools.reliability.fuzzing.worker FOLDER

Reads cases, one job of many at a time, and tells of each. A process of its own, so that it may die:
tools/reliability/fuzz.py watches it, ends it where it hangs or grows, and starts the next one behind the case at which
it happened.

A line in: JSON of a `Job`. Lines out: "begin NUMBER", then "NUMBER OUTCOME SECONDS MEGABYTES DETAIL" apart by tabs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import resource
import shutil
import sys
import time
import traceback
import warnings
from pathlib import Path

from tools.reliability.fuzzing.judge import OURS, ForbiddenError, Watch, changed, complaint_of, process_state, snapshot
from tools.reliability.fuzzing.mutate import Tree, write_tree
from tools.reliability.fuzzing.reader import Reader, case_of, find_reader

ADDRESS_SPACE = 6 << 30
"""Bytes that may be reserved beyond what the process has when it begins to read."""
FOLDERS = ("case", "cache", "home", "tmp", "outside", "cwd", "modules")
READ, REFUSED = "read", "refused"


@dataclasses.dataclass(frozen=True)
class Job:
    """Cases `first` to `last` - 1 of a reader, by its dotted name."""

    reader: str
    seed: int
    first: int
    last: int


@dataclasses.dataclass(frozen=True)
class Told:
    """What a case came to: `READ`, `REFUSED` or the kind of defect; `detail` says more."""

    number: int
    outcome: str
    seconds: float
    megabytes: int
    detail: str

    def line(self) -> str:
        return "\t".join(map(str, (self.number, self.outcome, f"{self.seconds:.4f}", self.megabytes, self.detail)))

    @classmethod
    def of_line(cls, line: str) -> Told:
        number, outcome, seconds, megabytes, detail = line.rstrip("\n").split("\t", 4)
        return cls(int(number), outcome, float(seconds), int(megabytes), detail)


def main(folder: Path) -> None:
    """Serves until stdin ends."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed goes to stderr
    for name in FOLDERS:
        (folder / name).mkdir(exist_ok=True)
    (folder / "outside" / "kept").write_bytes(b"kept")
    (folder / "modules" / "t2t_evil.py").write_text("import os\nos.mkdir('code-was-run')\n")
    sys.path.append(str(folder / "modules"))
    os.chdir(folder / "cwd")
    warnings.simplefilter("ignore")
    watch, limited = Watch(folder), False
    for line in sys.stdin:
        job = Job(**json.loads(line))
        reader = find_reader(job.reader)
        warm_up(reader, folder)
        if not limited:
            limited = True
            limit_address_space()
        print(f"begin {job.first}", file=out, flush=True)
        for number in range(job.first, job.last):
            told = run_case(reader, job, number, folder, watch)
            following = f"begin {number + 1}" if number + 1 < job.last else "done"
            print(told.line(), following, sep="\n", file=out, flush=True)


def warm_up(reader: Reader, folder: Path) -> None:
    """Reads a sample as it is, so that no case pays for what is imported or compiled once."""
    write_tree(reader.trees[0], folder / "case")
    with contextlib.suppress(Exception):
        reader.read(folder / "case")
    clear(folder)


def limit_address_space() -> None:
    """So that what is far too large is refused by the system, and not by the machine's death."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def run_case(reader: Reader, job: Job, number: int, folder: Path, watch: Watch) -> Told:
    """Reads one case and judges what happened."""
    tree = case_of(reader, job.reader, job.seed, number)
    case = folder / "case"
    write_tree(tree, case)
    before, rss, peak = snapshot(folder, FOLDERS), resident(), peak_resident()
    state = process_state()
    watch.found.clear()
    outcome, detail = READ, ""
    start = time.process_time()
    watch.active = True
    try:
        reader.read(case)
    except (Exception, ForbiddenError) as error:
        watch.active = False
        outcome, detail = REFUSED, ""
        if complaint := complaint_of(error, [*reader.names, *names_of(tree, case)]):
            outcome, detail = complaint, described(error)
        del error
    finally:
        watch.active = False
    seconds = time.process_time() - start
    highest = peak_resident()
    megabytes = max(0, highest - rss) >> 20 if highest > peak else 0
    if traces := changed(
        before, snapshot(folder, FOLDERS), [*reader.writes, *(f"case/{name}" for name in reader.writes)]
    ):
        outcome, detail = "it writes where it should not", ", ".join(traces)[:200]
    if changes := [name for name, value in process_state().items() if value != state.get(name, value)]:
        outcome, detail = "it changes the process", ", ".join(changes)[:200]
    if watch.found:
        outcome, detail = "it does more than read", "; ".join(watch.found)[:300]
    if megabytes > reader.megabytes:
        outcome, detail = "it fills the memory", f"{megabytes} MB"
    clear(folder)
    return Told(number, outcome, seconds, megabytes, detail.encode("ascii", "backslashreplace").decode())


def names_of(tree: Tree, case: Path) -> list[str]:
    """What a message may name: a file of the case by its path or name, or the folder."""
    return [str(case), *(name.rpartition("/")[2] for name in tree if len(name.rpartition("/")[2]) > 3)]


def described(error: BaseException) -> str:
    """The error, and where in our code it comes from."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "reliability" not in frame.filename]
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    ours = [frame for frame in frames if any(f"/{name}/" in frame.filename for name in OURS)]
    where += f" from {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
    return f"{type(error).__name__}: {' '.join(str(error)[:300].split())} ({where})"


def resident() -> int:
    """Bytes of memory that the process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak_resident() -> int:
    """Bytes that it ever had. (`ru_maxrss` would begin with what the process had that started this one.)"""
    status = Path("/proc/self/status").read_text()
    return int(status[status.index("VmHWM:") + 6 :].split(maxsplit=1)[0]) * 1024


def clear(folder: Path) -> None:
    """Everything that a case may have left is taken away."""
    for name in FOLDERS:
        if name in ("outside", "modules"):
            continue
        for entry in os.scandir(folder / name):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)
    gc.collect(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
