"""The process of a command: exit codes, user errors as one line on stderr, Ctrl-C, a closed pipe.

The commands of this package write nothing but small files, at their end, so that Ctrl-C can end the process at once.
(Those of the T2T packages train for days and have a runner of their own, `t2t_common.io.cli`.)
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn

OK, FAILED, MISUSED = 0, 1, 2
INTERRUPTED, CUT_OFF = 130, 141
"""Exit codes as in a shell: 128 plus the number of the signal, SIGINT and SIGPIPE."""

_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|RESOURCE_EXHAUSTED", re.IGNORECASE)
"""PyTorch on the CPU and XLA have no exception type for a lack of memory."""


def run_and_end(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run `main` with the arguments of the process, and exit with its exit code; exit at once if it failed."""
    end_at_ctrl_c()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # where the encoding of the terminal lacks a character
    try:
        code = run(main, sys.argv[1:])
    except SystemExit:  # after --help
        raise
    except BaseException:
        traceback.print_exc()
        code = FAILED
    if code != OK:
        end(code)
    sys.exit(code)


def run(main: Callable[[Sequence[str]], int], args: Sequence[str]) -> int:
    """Return the exit code of `main(args)`; ValueError, OSError and lack of memory become one line and code 2."""
    try:
        code = main(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader has closed the pipe, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter reports an error at exit
        return CUT_OFF
    except OSError as error:
        return complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except ValueError as error:
        return complain(str(error))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _MEMORY.search(str(error)):
            raise
        reason = (str(error).splitlines() or ["MemoryError"])[0][:200]
        return complain(f"out of memory ({reason}): choose smaller inputs or a smaller model")
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return INTERRUPTED


def complain(text: str) -> int:
    """Print an error as one line, with unprintable characters escaped; return the exit code."""
    line = " ".join(text.split())
    print("error: " + "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line), file=sys.stderr)
    return MISUSED


def end_at_ctrl_c() -> None:
    """Let Ctrl-C end the process with one line, also where Python would lose a KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not if it is ignored, as under nohup
        signal.signal(signal.SIGINT, _stop)


def restore_ctrl_c() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, for a command that ends by itself."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    os.write(2, b"stopped\n")
    end(INTERRUPTED)


def end(code: int) -> NoReturn:
    """End the process and its workers without waiting for anything."""
    for worker in multiprocessing.active_children():
        worker.kill()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(RuntimeError, OSError):  # if Ctrl-C came while it was written to
            stream.flush()
    os._exit(code)
