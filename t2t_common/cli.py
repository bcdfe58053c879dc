"""Command lines: options from dataclasses (tyro), every mistake of the user one line on stderr and exit code
2.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import tyro

from t2t_common.terminal import escaped_streams, unescaped_streams

T = TypeVar("T")

_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|RESOURCE_EXHAUSTED", re.IGNORECASE)

OK, FAILED, MISUSED = 0, 1, 2
INTERRUPTED, CUT_OFF = 130, 141
"""As a shell has them: 128 and the number of the signal, SIGINT and SIGPIPE."""


def parse(kind: type[T], args: Sequence[str], *, prog: str, description: str, default: T | None = None) -> T:
    """Options of the dataclass `kind` from `args`; `--help` prints and exits.

    Raises:
        ValueError: what tyro says about the options, in one line.
    """
    complaint = io.StringIO()
    tyro._experimental_options["ansi_codes"] = not os.environ.get("NO_COLOR")
    start: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with unescaped_streams(), contextlib.redirect_stderr(complaint):  # --help has colours
            return tyro.cli(kind, args=list(args), prog=prog, description=description, **start)
    except SystemExit as end:
        if end.code in (0, None):
            raise
        text = re.sub(r"\x1b\[[0-9;]*m|[\u2500-\u257f]|-{4,}", " ", complaint.getvalue())  # colours and box lines
        raise ValueError(" ".join(text.split())) from None


def run(main: Callable[[Sequence[str]], int], args: Sequence[str] | None = None) -> int:
    """Exit code of `main`; ValueError, OSError and a lack of memory become one line on stderr and code 2.

    Whatever is printed meanwhile, no name of a file or class gives orders to the terminal.
    """
    with escaped_streams():
        return _run(main, args)


def _run(main: Callable[[Sequence[str]], int], args: Sequence[str] | None) -> int:
    try:
        code = main(sys.argv[1:] if args is None else args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever reads has enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains in the end
        return CUT_OFF
    except OSError as error:
        return _complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except ValueError as error:
        return _complain(str(error))
    except Exception as error:
        if not _tells_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return _complain(f"out of memory ({reason[:200]}): choose a smaller --batch-size, image size or model")
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return INTERRUPTED


def run_and_end(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Ends the process by the exit code of `main`, as `run` has it; at once, where it failed.

    In good order Python and JAX would wait for threads that write, for worker processes, for other machines: where
    something failed, that may be for ever.
    """
    try:
        code = run(main)
    except SystemExit:
        raise
    except BaseException:
        with escaped_streams():  # names of files are in tracebacks too
            traceback.print_exc()
        code = FAILED
    if code != OK:
        for worker in multiprocessing.active_children():
            worker.kill()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a run that was asked to stop twice has ended well all the same
    sys.exit(code)


def _tells_of_memory(error: BaseException) -> bool:
    """PyTorch on the CPU and XLA have no type of their own for it."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_MEMORY.search(str(error))))


def _complain(text: str) -> int:
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    return MISUSED
