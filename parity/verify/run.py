"""Start a confined process, wait for it as long as its limits allow, and read its answer."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

import parity
from parity.verify import arrays

CHILD = Path(__file__).with_name("child.py")

START = "import runpy, sys; runpy.run_path(sys.argv[1])['serve'](*sys.argv[2:])"

WITHOUT = ("torch", "torchvision", "torchaudio", "torchgen", "functorch", "torch_xla", "tensorflow", "onnxruntime")
"""Modules that a port cannot import: PyTorch, and what could run a PyTorch model in its place."""

SYSTEM = (
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/etc/localtime"),
    *("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random", "/sys/devices/system/cpu", "/sys/devices/system/node"),
    *("/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/self", "/sys/fs/cgroup"),
)
"""What Python and JAX read of the system."""


class UnjudgeableError(Exception):
    """The port, or the specification, cannot be judged; the message says why in one line.

    `line` is the line of the port's file at fault, if there is one.
    """

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(" ".join(message.split()))
        self.line = line


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one process may use; beyond it, the port cannot be judged.

    Attributes:
        seconds: CPU time, which does not depend on how busy the machine is.
        wall: Time by the clock in seconds; for ports that wait.
        memory: Address space in GiB.
        output: Size of the answer in MiB.
    """

    seconds: int = 600
    wall: float = 3600.0
    memory: float = 16.0
    output: float = 1024.0


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a confined process has answered: JSON and arrays, to be doubted, and the measures that confined it."""

    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]
    isolation: tuple[str, ...]


def ask(
    role: str,
    meta: Mapping[str, Any],
    given: Mapping[str, np.ndarray],
    limits: Limits,
    *,
    files: Mapping[str, bytes] | None = None,
    readable: Sequence[str] = (),
    torch: bool = False,
) -> Answer:
    """Let `parity.verify.ROLE.answer(meta, arrays)` run in a confined process, in an empty folder.

    Args:
        files: Name -> content of files that the process can read; `meta["folder"]` is where they are.
        readable: Further files and folders that it can read.
        torch: Whether it can import PyTorch.

    Raises:
        UnjudgeableError: It exceeds a limit, ends by itself, or answers nonsense.
    """
    with tempfile.TemporaryDirectory(prefix="parity-") as scratch, tempfile.TemporaryFile() as result:
        folder, empty, library = (Path(scratch) / name for name in ("port", "empty", "library"))
        for path in (folder, empty, library):
            path.mkdir()
        for name, content in (files or {}).items():
            (folder / name).write_bytes(content)
        source = Path(parity.__file__).parent
        (library / "parity").symlink_to(source, target_is_directory=True)
        blocked = () if torch else WITHOUT
        inside = [*_python(blocked), *SYSTEM, str(source), str(folder), str(empty), str(library), *readable]
        confinement = {
            "seconds": limits.seconds,
            "memory": int(limits.memory * 2**30),
            "size": int(limits.output * 2**20),
            "readable": inside,
            "blocked": blocked,
        }
        request = Path(scratch) / "request"
        asked = {**meta, "library": str(library), "folder": str(folder), "confinement": confinement}
        with open(request, "wb") as file:
            arrays.write(file, asked, given)
        code = _wait(role, result.fileno(), request, empty, limits)
        result.seek(0)
        return _answer(code, result)


def _python(blocked: Sequence[str]) -> list[str]:
    """Return the folders of the standard library and of everything installed, without the blocked packages."""
    paths = sysconfig.get_paths()
    found = [paths["stdlib"], paths["platstdlib"], sys.base_prefix + "/lib", sys.executable, sys.prefix + "/pyvenv.cfg"]
    standard = Path(os.path.realpath(paths["stdlib"]))
    found = [path for path in found if not (standard / "site-packages").is_relative_to(os.path.realpath(path))]
    found += [str(path) for path in standard.iterdir() if path.name != "site-packages"]
    for packages in {paths["purelib"], paths["platlib"]}:
        names = [path for path in Path(packages).iterdir() if path.name.partition("-")[0] not in blocked]
        found += map(str, names)
    return found


def _wait(role: str, result: int, request: Path, folder: Path, limits: Limits) -> int | str:
    """Run the process; return its exit code, or which limit it has exceeded."""
    environment = {"PATH": os.defpath, "HOME": str(folder), "TMPDIR": str(folder), "LANG": "C.UTF-8"}
    environment |= {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    environment |= {"TORCHINDUCTOR_CACHE_DIR": str(folder)}  # which PyTorch creates unless it is there
    process = subprocess.Popen(
        [sys.executable, "-I", "-B", "-c", START, str(CHILD), role, str(result), str(request)],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[result],
        start_new_session=True,
    )
    end = time.monotonic() + limits.wall
    try:
        return process.wait(max(end - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        return f"it takes longer than {limits.wall:g} seconds"
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


ENDS = {
    signal.SIGXCPU: "it takes more CPU time than the limit",
    signal.SIGXFSZ: "its answer is larger than the limit",
    signal.SIGKILL: "it was killed: it exceeds the CPU time or the memory",
}


def _answer(code: int | str, result: BinaryIO) -> Answer:
    if isinstance(code, str):
        raise UnjudgeableError(code)
    if code < 0:
        number = -code
        raise UnjudgeableError(ENDS.get(signal.Signals(number), f"its process ended with signal {number}"))
    try:
        meta, found = arrays.read(result)
    except arrays.DamagedError:
        raise UnjudgeableError(f"its process ended without an answer (exit code {code})") from None
    if "error" in meta:
        line = meta.get("line")
        raise UnjudgeableError(printable(meta["error"], 500), line if type(line) is int and line > 0 else None)
    isolation = meta.get("isolation")
    named = isolation if isinstance(isolation, list) else []
    return Answer(meta, found, tuple(printable(x, 20) for x in named[:10]))


def printable(value: Any, most: int) -> str:
    """Return a text of another process as one short line without anything that a terminal would obey."""
    text = " ".join(str(value)[: 4 * most].split())
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= most else text[: most - 3] + "..."
