"""Small training runs as processes of their own, and whether two of them left the same behind, bit for bit."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from t2t_common.writers import METRICS_FILE
from t2t_jax.checkpoint import load_model_state
from t2t_torch import read_state_dict

Package = Literal["t2t_jax", "t2t_torch"]
PACKAGES: tuple[Package, ...] = ("t2t_jax", "t2t_torch")

IMAGES = {"train": 64, "val": 20}
BATCH_SIZE = 8
STEPS_PER_EPOCH = IMAGES["train"] // BATCH_SIZE
FIELDS = {
    **{"model": "t2t_vit_micro", "img-size": 16, "batch-size": BATCH_SIZE, "cooldown-epochs": 0, "warmup-epochs": 1},
    **{"ema-decay": 0.8, "log-every": 1, "eval-every": 3, "checkpoint-every": 2, "checkpoint-every-steps": 5},
    **{"data-threads": 2},
}
"""Every step has its line, and most of the time a checkpoint is being written."""

POLL_SECONDS = 0.001
PATIENCE_SECONDS = 600.0
"""For a run that nobody harms."""

TIMES = ("seconds", "images_per_second", "data_wait")
"""Fields of the metrics that no two runs share."""


class NotSurvivedError(Exception):
    """A fault did what none may do; the message says what."""


def write_images(folder: Path) -> Path:
    """Four classes of 8x8 noise, as PNG files in folders."""
    draws = np.random.RandomState(0)
    for split, count in IMAGES.items():
        for number in range(count):
            file = folder / split / f"class{number % 4}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draws.randint(0, 256, (8, 8)).astype(np.uint8)).save(file)
    return folder


@dataclasses.dataclass
class Running:
    """The processes of a run (more than one train together), and where they write."""

    processes: list[subprocess.Popen[bytes]]
    workdir: Path
    logs: list[Path]

    def said(self) -> str:
        """What all of them have said."""
        return "".join(path.read_text(errors="replace") for path in self.logs)

    def await_lines(self, count: int) -> None:
        """Returns once this start has written `count` lines of metrics.

        Raises:
            NotSurvivedError: the run ended before.
        """
        path = self.workdir / METRICS_FILE
        touched = lambda: path.stat().st_mtime_ns if path.exists() else 0  # noqa: E731
        before = touched()
        self.wait_until(lambda: touched() != before)  # what a killed run had written is forgotten first
        enough = count_lines(self.workdir) + count
        self.wait_until(lambda: count_lines(self.workdir) >= enough)
        if any(process.poll() is not None for process in self.processes):
            raise NotSurvivedError(f"ended before the fault: {self.said()[-2000:]}")

    def wait_until(self, true: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> float:
        """Seconds until `true()`, the end of a process, or `seconds`."""
        start = time.perf_counter()
        while not true() and not self.has_ended() and time.perf_counter() - start < seconds:
            time.sleep(POLL_SECONDS)
        return time.perf_counter() - start

    def has_ended(self) -> bool:
        """Whether one of the processes has."""
        return any(process.poll() is not None for process in self.processes)

    def end(self, seconds: float = PATIENCE_SECONDS) -> list[int]:
        """Exit codes, once all have ended by themselves.

        Raises:
            NotSurvivedError: they have not within `seconds`.
        """
        until = time.perf_counter() + seconds
        try:
            return [process.wait(max(0.0, until - time.perf_counter())) for process in self.processes]
        except subprocess.TimeoutExpired:
            raise NotSurvivedError(f"hangs for {seconds:g} s; it said: {self.said()[-2000:]}") from None

    def expect_success(self) -> None:
        """Waits for the end.

        Raises:
            NotSurvivedError: a process failed.
        """
        if any(self.end()):
            raise NotSurvivedError(f"cannot be finished: {self.said()[-2000:]}")

    def kill(self) -> None:
        """SIGKILL to all of them."""
        for process in self.processes:
            process.kill()
            process.wait()

    def helpers(self) -> list[int]:
        """Processes that the first one has started, by their ids."""
        return _children(self.processes[0].pid)

    def children(self) -> list[int]:
        """Processes that prepare batches for the first one, by their ids: its own, or those of its fork server."""
        found = []
        for pid in _children(self.processes[0].pid):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"multiprocessing.forkserver" in command:
                found += _children(pid)
            elif b"resource_tracker" not in command:
                found.append(pid)
        return found


def group_members(group: int) -> dict[int, str]:
    """Processes of a process group that have not ended, by their ids, each with its command."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ends just now
            state, _, of_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(of_group) == group and state != "Z":
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found[int(folder.name)] = f"{state} {command[:100]}"
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            found += map(int, (task / "children").read_text().split())
    return found


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a run ended that could not go on: after how many seconds, with which last words."""

    seconds: float
    words: str


@dataclasses.dataclass
class Lab:
    """Where runs of one package are tried: they share data, length and the run that nobody harmed.

    Attributes:
        package: whose `train` runs.
        folder: for everything.
        processes: that train together.
        epochs: length of a run, of `STEPS_PER_EPOCH` steps each.
        starting: seconds until the first line of the undisturbed run, once there is one.
    """

    package: Package
    folder: Path
    processes: int = 1
    epochs: int = 6
    starting: float = 0.0

    @functools.cached_property
    def data(self) -> Path:
        """The images."""
        folder = self.folder / "data"
        return folder if folder.is_dir() else write_images(folder)

    @functools.cached_property
    def undisturbed(self) -> Path:
        """Workdir of the run that nobody harmed."""
        workdir = self.folder / f"{self.package}-{self.processes}-undisturbed"
        with self.start(workdir) as run:
            self.starting = run.wait_until(lambda: count_lines(workdir) > 0)
            run.expect_success()
        return workdir

    @contextlib.contextmanager
    def start(
        self,
        workdir: Path,
        *options: str,
        data: Path | None = None,
        environment: Mapping[str, str] | None = None,
        log: str | None = None,
    ) -> Iterator[Running]:
        """The run in `workdir`, begun or continued; what still runs in the end is killed. `log`: name of its log."""
        fields = {"data": data or self.data, "workdir": workdir, "epochs": self.epochs, **FIELDS}
        command = [sys.executable, "-m", f"{self.package}.train", "digits"]
        command += [*(f"--{name}={value}" for name, value in fields.items()), *options]
        cache = {"JAX_COMPILATION_CACHE_DIR": f"{self.folder}/xla", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        everywhere = {**cache, **os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", **(environment or {})}
        port = free_port()
        run = Running([], workdir, [])
        try:
            for index in range(self.processes):
                joined, own = self._joined(index, port)
                run.logs.append(self.folder / f"{log or workdir.name}-{index}.log")
                with run.logs[-1].open("wb") as file:
                    env = {**everywhere, **own}
                    process = subprocess.Popen(
                        [*command, *joined], stdout=file, stderr=subprocess.STDOUT, env=env, process_group=0
                    )
                run.processes.append(process)
            yield run
        finally:
            run.kill()

    def _joined(self, index: int, port: int) -> tuple[list[str], dict[str, str]]:
        """Options and environment of process `index`."""
        if self.processes == 1:
            return [], {}
        if self.package == "t2t_jax":
            return [f"--distributed=127.0.0.1:{port},{self.processes},{index}"], {}
        ranks = {"RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": str(self.processes)}
        return [], {**ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    def finish(self, workdir: Path, **how: Any) -> None:
        """Begins or continues the run in `workdir`, and waits for its end.

        Raises:
            NotSurvivedError: it failed.
        """
        with self.start(workdir, **how) as run:
            run.expect_success()

    def compare(self, workdir: Path) -> dict[str, Any]:
        """What the finished run in `workdir` left, beside what the undisturbed one did."""
        ours, theirs = arrays(self.package, workdir), arrays(self.package, self.undisturbed)
        return {
            "lines_compared": count_lines(self.undisturbed),
            "lines_that_differ": count_differing_lines(workdir, self.undisturbed),
            "arrays_compared": len(theirs),
            "arrays_that_differ": differing_arrays(ours, theirs),
        }


def clear_end(run: Running, pattern: str, seconds: float, *, code: int = 2, index: int = 0) -> Ended:
    """How a run that cannot go on has ended; `index`: the process that has to say why.

    Raises:
        NotSurvivedError: it did not end in time, not with exit code `code`, or not with one line that matches
            `pattern`.
    """
    start = time.perf_counter()
    found = run.end(seconds)[index]
    took = time.perf_counter() - start
    said = run.logs[index].read_text(errors="replace")
    words = [line for line in said.splitlines() if re.search(pattern, line)]
    if found != code or len(words) != 1 or "Traceback" in said:
        raise NotSurvivedError(f"exit code {found}, expected {code} and one line like {pattern!r}: {said[-2000:]}")
    return Ended(round(took, 1), words[0].removeprefix("error: "))


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


# --- What a run left ----------------------------------------------------------------------------------------


def count_lines(workdir: Path) -> int:
    """Lines of the run's log of metrics; 0 without one."""
    path = workdir / METRICS_FILE
    return path.read_bytes().count(b"\n") if path.exists() else 0


def metrics(workdir: Path) -> list[dict[str, Any]]:
    """Lines of the run's log of metrics, without times."""
    lines = [json.loads(line) for line in (workdir / METRICS_FILE).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def count_differing_lines(one: Path, other: Path) -> int:
    """How many lines of metrics differ; a missing one counts too."""
    ours, theirs = metrics(one), metrics(other)
    return sum(a != b for a, b in zip(ours, theirs, strict=False)) + abs(len(ours) - len(theirs))


def arrays(package: Package, workdir: Path) -> dict[str, np.ndarray]:
    """The final weights by name, trained and averaged."""
    found: dict[str, np.ndarray] = {}
    for kind, use_ema in (("weights", False), ("average", True)):
        if package == "t2t_jax":
            weights = load_model_state(workdir, use_ema=use_ema).arrays
        else:
            weights = {name: tensor.numpy() for name, tensor in read_state_dict(workdir, use_ema=use_ema).items()}
        found |= {f"{kind}: {name}": array for name, array in weights.items()}
    return found


def differing_arrays(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> list[str]:
    """Names of arrays that are not equal bit for bit, or are missing in one."""
    return sorted(name for name in ours.keys() | theirs.keys() if not same_bits(ours.get(name), theirs.get(name)))


def same_bits(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    """Equal in shape, dtype and every bit."""
    if one is None or other is None:
        return False
    return (one.shape, one.dtype, one.tobytes()) == (other.shape, other.dtype, other.tobytes())
