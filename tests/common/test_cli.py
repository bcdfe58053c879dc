"""Command lines: mistakes of the user are one line and exit code 2, whoever reads may stop."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from t2t_common import cli
from tests.clean_env import SIGINT_AS_USUAL


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ValueError("no\n  such  size: 3"), "error: no such size: 3\n"),
        (FileNotFoundError("no file a.pth: check the path"), "error: no file a.pth: check the path\n"),
        (PermissionError(13, "Permission denied", "a.pth"), "error: a.pth: Permission denied\n"),
        (IsADirectoryError(21, "Is a directory", "folder"), "error: folder: Is a directory\n"),
    ],
)
def test_errors_of_the_user_are_one_line(error: Exception, says: str, capsys: pytest.CaptureFixture[str]):
    def main(args: Sequence[str]) -> int:
        raise error

    assert cli.run(main, []) == cli.MISUSED
    assert capsys.readouterr().err == says


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "MemoryError"),
        (MemoryError("Unable to allocate 7.28 TiB"), "Unable to allocate 7.28 TiB"),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"),
            "CUDA out of memory. Tried to allocate 2 GiB.",
        ),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes"), "RESOURCE_EXHAUSTED: Out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "can't allocate memory"),
    ],
)
def test_a_lack_of_memory_is_one_line(error: Exception, reason: str, capsys: pytest.CaptureFixture[str]):
    """With what PyTorch itself raises: tests/torch/test_train.py."""

    def main(args: Sequence[str]) -> int:
        raise error

    assert cli.run(main, []) == cli.MISUSED
    said = capsys.readouterr().err
    assert said.startswith("error: out of memory (")
    assert reason in said
    assert said.endswith("): choose a smaller --batch-size, image size or model\n")


def test_other_errors_are_ours_and_keep_their_traceback():
    def main(args: Sequence[str]) -> int:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        cli.run(main, [])


def test_ctrl_c(capsys: pytest.CaptureFixture[str]):
    def main(args: Sequence[str]) -> int:
        raise KeyboardInterrupt

    assert cli.run(main, []) == cli.INTERRUPTED
    assert capsys.readouterr().err == "stopped\n"


LOST = """
import os, signal, sys, time
from t2t_common import cli

class Freed:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)  # here Python raises KeyboardInterrupt, prints it and forgets it

def main(args):
    Freed()
    time.sleep(60)
    return cli.OK

sys.exit(cli.run(main))
"""


def test_ctrl_c_where_python_forgets_it():
    command = [*SIGINT_AS_USUAL, sys.executable, "-c", LOST]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stderr) == (cli.INTERRUPTED, "stopped\n")


def test_the_version(capsys: pytest.CaptureFixture[str]):
    assert cli.run(lambda args: 1 / 0, ["digits", "--version"]) == cli.OK  # type: ignore[arg-type, return-value]
    assert re.fullmatch(r"t2t-vit \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize("lines", [1, 100_000], ids=["in the buffer", "more than a pipe holds"])
def test_a_reader_that_has_enough_is_no_error(lines: int, tmp_path: Path):
    code = (
        "import sys; from t2t_common import cli; input()\n"
        f"sys.exit(cli.run(lambda args: print('line\\n' * {lines}) or 0, []))"
    )
    command = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=Path(cli.__file__).parents[1]) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stderr.read() == b""
    assert process.returncode == cli.CUT_OFF


ENDING = """
import sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from t2t_common import cli

def main(args):
    if args[0] == "hangs":
        ThreadPoolExecutor(1).submit(time.sleep, 600)  # Python waits for it in the end
    print("said")
    if args[0] == "hangs":
        raise {"ValueError": ValueError, "TypeError": TypeError}[args[1]]("why")
    return cli.OK

cli.run_and_end(main)
"""


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["hangs", "ValueError"], 2, "error: why\n"),
        (["hangs", "TypeError"], 1, "TypeError: why\n"),
        (["ends"], 0, ""),
    ],
)
def test_a_process_that_failed_ends_although_a_thread_hangs(args: list[str], code: int, said: str):
    command = [sys.executable, "-c", ENDING, *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (code, "said\n")
    assert done.stderr.endswith(said)


def test_ctrl_c_is_one_line_whatever_it_leaves_half_built():
    """A coroutine that was never awaited, and an object that cannot be freed, as JAX and Orbax leave them."""
    code = """
from t2t_common import cli

class HalfBuilt:
    def __del__(self):
        self.never_set.close()

async def never_awaited(): ...

def main(args):
    half_built, coroutine = HalfBuilt(), never_awaited()
    raise KeyboardInterrupt

cli.run_and_end(main)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (cli.INTERRUPTED, "stopped\n")


def test_a_process_that_ended_well_is_not_failed_by_a_late_sigterm():
    code = """
import atexit, os, signal
from t2t_common import cli
atexit.register(os.kill, os.getpid(), signal.SIGTERM)
cli.run_and_end(lambda args: cli.OK)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == cli.OK
