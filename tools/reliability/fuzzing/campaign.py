"""Many cases of many readers in worker processes, which are watched from outside: they may crash, hang and grow."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tools.reliability.fuzzing.reader import find_reader
from tools.reliability.fuzzing.worker import READ, REFUSED, Job, Told

ROOT = Path(__file__).parents[3]
POLL = 0.2
START_SECONDS = 120.0
"""For a worker to import everything and to make the samples."""
PATIENCE = 12
"""Seconds on the clock in which a case gets one of the processor, on a machine that has much else to do."""
GROWTH = 3 << 30
"""Bytes above its start at which a worker is ended while it reads."""


@dataclasses.dataclass
class Tally:
    """What the cases of one reader came to."""

    cases: int = 0
    outcomes: Counter[str] = dataclasses.field(default_factory=Counter)
    slowest: float = 0.0
    largest: int = 0
    defects: list[Told] = dataclasses.field(default_factory=list)

    def add(self, told: Told) -> None:
        self.cases += 1
        self.outcomes[told.outcome if told.outcome in (READ, REFUSED) else "defects"] += 1
        self.slowest, self.largest = max(self.slowest, told.seconds), max(self.largest, told.megabytes)
        if told.outcome not in (READ, REFUSED):
            self.defects.append(told)

    @property
    def figures(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "cases": self.cases,
            **{name: self.outcomes[name] for name in (READ, REFUSED, "defects")},
            "slowest case, s": round(self.slowest, 1),
            "largest growth, MB": self.largest,
        }


def run(
    counts: Mapping[str, int],
    *,
    seed: int,
    first: int = 0,
    progress: Callable[[str, Told], None] = lambda name, told: None,
    finished: Callable[[dict[str, Tally]], None] = lambda tallies: None,
) -> dict[str, Tally]:
    """Cases `first` to `first + counts[reader] - 1` of every reader, by its dotted name.

    `progress` is told of every case, `finished` after every reader of all so far.
    """
    tallies: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        worker = Worker(Path(folder))
        try:
            for name, count in counts.items():
                tallies[name] = Tally()
                for told in worker.cases(Job(name, seed, first, first + count)):
                    tallies[name].add(told)
                    progress(name, told)
                finished(tallies)
        finally:
            worker.end()
    return tallies


class Worker:
    """A process that reads, and its successors."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._rest, self._count = folder, b"", 0
        self._process: subprocess.Popen[bytes] | None = None

    def cases(self, job: Job) -> Iterator[Told]:
        """What every case of `job` came to."""
        seconds, number = find_reader(job.reader).seconds, job.first
        while number < job.last:
            process = self._started()
            assert process.stdin is not None
            process.stdin.write(json.dumps(dataclasses.asdict(dataclasses.replace(job, first=number))).encode() + b"\n")
            process.stdin.flush()
            begun, limit, since, base = None, START_SECONDS, self._clocks(), 0
            while number < job.last:
                line = self._line()
                if line == "" and self._is_late(since, limit):
                    line = None
                grown = line == "" and self._resident() > base + GROWTH > GROWTH
                if line is None or grown:
                    ending = self._ending(grown)
                    if begun is None:
                        raise RuntimeError(f"a worker ended before it read {job.reader}: {ending}; {self._log()}")
                    yield Told(begun, ending, limit, 0, self._log())
                    number = begun + 1
                    break
                if line.startswith("begin "):
                    begun, limit, since = int(line[6:]), seconds, self._clocks()
                    base = base or self._resident()
                elif line and line != "done":
                    told = Told.of_line(line)
                    number = told.number + 1
                    yield told
            else:
                while self._process is not None and self._line() not in ("done", None):
                    pass

    def end(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):
                    stream and stream.close()
            self._process = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.end()
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir()
        own = {
            "HOME": folder / "home",
            "T2T_CACHE": folder / "cache",
            "XDG_CACHE_HOME": folder / "cache",
            "TMPDIR": folder / "tmp",
        }
        environment = {**os.environ, **{name: str(path) for name, path in own.items()}, "PYTHONPATH": str(ROOT)}
        environment |= {"OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu", "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "80"}
        command = [sys.executable, "-m", "tools.reliability.fuzzing.worker", str(folder)]
        with self._log_file.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment, cwd=ROOT
            )
        self._rest = b""
        return self._process

    @property
    def _log_file(self) -> Path:
        return self._folder / f"{self._count}.log"

    def _log(self) -> str:
        return " ".join(self._log_file.read_bytes()[-300:].decode("ascii", "replace").split())

    def _clocks(self) -> tuple[float, float]:
        """Seconds on the clock, and of the processor that the process has used."""
        assert self._process is not None
        with contextlib.suppress(OSError, IndexError):
            used = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
            return time.monotonic(), sum(map(int, used)) / os.sysconf("SC_CLK_TCK")
        return time.monotonic(), 0.0

    def _is_late(self, since: tuple[float, float], limit: float) -> bool:
        clock, used = (now - then for now, then in zip(self._clocks(), since, strict=True))
        return used > limit or clock > PATIENCE * limit

    def _line(self) -> str | None:
        """The next line; "" when there is none for a moment; None when the process has ended."""
        assert self._process is not None
        assert self._process.stdout is not None
        stream = self._process.stdout
        if b"\n" not in self._rest:
            if select.select([stream], [], [], POLL)[0]:
                data = os.read(stream.fileno(), 1 << 16)
                if not data:
                    self._process.wait()
                    return None
                self._rest += data
            if b"\n" not in self._rest:
                return ""
        line, self._rest = self._rest.split(b"\n", 1)
        return line.decode("ascii", "replace")

    def _resident(self) -> int:
        assert self._process is not None
        try:
            return int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):
            return 0

    def _ending(self, grown: bool) -> str:
        """Ends the process, if it has not ended itself; why."""
        assert self._process is not None
        code = self._process.poll()
        self.end()
        if grown:
            return "it fills the memory"
        return "it hangs" if code is None else f"it ends the process ({code})"
