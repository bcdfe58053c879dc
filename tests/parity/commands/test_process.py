"""How a command ends: exit codes, errors of one line, Ctrl-C, a reader that has enough."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest

from parity.commands import process
from tests.support.clean_env import ROOT, SIGINT_AS_USUAL


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ValueError("no\n  such  size: 3"), "error: no such size: 3\n"),
        (ValueError("named \x1b[31m"), "error: named \\x1b[31m\n"),
        (FileNotFoundError("no file a.pth: check the path"), "error: no file a.pth: check the path\n"),
        (PermissionError(13, "Permission denied", "a.pth"), "error: a.pth: Permission denied\n"),
        (MemoryError(), "error: out of memory (MemoryError): choose smaller inputs or a smaller model\n"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmore"),
            "error: out of memory (RESOURCE_EXHAUSTED: Out of memory): choose smaller inputs or a smaller model\n",
        ),
    ],
)
def test_errors_of_the_user_are_one_line(error: Exception, says: str, capsys: pytest.CaptureFixture[str]):
    def main(args: Sequence[str]) -> int:
        raise error

    assert process.run(main, []) == process.MISUSED
    assert capsys.readouterr().err == says


def test_other_errors_keep_their_traceback():
    def main(args: Sequence[str]) -> int:
        raise RuntimeError("why")

    with pytest.raises(RuntimeError, match="why"):
        process.run(main, [])


ENDING = """
import os, signal, sys, time
from concurrent.futures import ThreadPoolExecutor
from parity.commands.process import run_and_end

class Freed:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)  # Python would raise KeyboardInterrupt here, print it and forget it

def main(args):
    ThreadPoolExecutor(1).submit(time.sleep, 600 * (args[0] != "ends"))  # Python waits for it in the end
    print("said", flush=args[0] == "is stopped")
    if args[0] == "is stopped":
        Freed()
        time.sleep(60)
    if args[0] != "ends":
        raise {"ValueError": ValueError, "TypeError": TypeError}[args[0]]("why")
    return 0

run_and_end(main)
"""


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("ValueError", process.MISUSED, "error: why\n"),
        ("TypeError", process.FAILED, "TypeError: why\n"),
        ("is stopped", process.INTERRUPTED, "stopped\n"),
        ("ends", process.OK, ""),
    ],
)
def test_a_process_ends_with_its_code_although_a_thread_hangs(how: str, code: int, said: str):
    command = [*SIGINT_AS_USUAL, sys.executable, "-c", ENDING, how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout) == (code, "said\n")
    assert done.stderr.endswith(said)
    assert ("Traceback" in done.stderr) == (how == "TypeError")


def test_a_reader_that_has_enough_is_no_error():
    code = (
        "import sys; from parity.commands.process import run; input()\n"
        "sys.exit(run(lambda args: print('line\\n' * 100_000) or 0, []))"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, cwd=ROOT) as started:
        assert started.stdin is not None
        assert started.stdout is not None
        assert started.stderr is not None
        started.stdout.close()
        started.stdin.write(b"\n")
        started.stdin.flush()
        assert started.stderr.read() == b""
    assert started.returncode == process.CUT_OFF
