"""Command lines: options are parsed from dataclasses (tyro); user errors become one line on stderr and exit code 2."""

from __future__ import annotations

import _thread
import contextlib
import inspect
import io
import multiprocessing
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

import tyro

from t2t_common.io.commands import called
from t2t_common.io.metavars import registry
from t2t_common.io.option_errors import rephrase
from t2t_common.io.terminal import escaped_streams, unescaped_streams
from t2t_config.extras import DISTRIBUTION, end_at_ctrl_c, restore_ctrl_c, version
from t2t_config.text import first_line

T = TypeVar("T")

_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|RESOURCE_EXHAUSTED", re.IGNORECASE)

OK, FAILED, MISUSED = 0, 1, 2
INTERRUPTED, CUT_OFF = 130, 141
"""Exit codes as in a shell: 128 plus the number of the signal, SIGINT and SIGPIPE."""

NO_WRAP = 10_000
"""Terminal width at which tyro does not wrap any line of its output."""


def parse(kind: type[T], args: Sequence[str], *, prog: str, description: str, default: T | None = None) -> T:
    """Parse the options of the dataclass `kind` from `args`; `--help` prints and exits.

    Raises:
        ValueError: If tyro rejects the options; its message in one line.
    """
    options: dict[str, Any] = {} if default is None else {"default": default}
    prog = called(prog)
    options |= {"args": list(args), "prog": prog, "description": inspect.cleandoc(description)}
    with registry():
        try:
            with unescaped_streams(), contextlib.redirect_stderr(io.StringIO()):  # --help is coloured
                return tyro.cli(kind, **options)
        except ValueError as error:  # raised by the options' own checks, not caught by tyro 1.0.0
            raise ValueError(f"{error} (see {prog} --help)") from None
        except SystemExit as end:
            if end.code in (0, None):
                raise
        raise ValueError(rephrase(_refusal(kind, options), prog))


def _refusal(kind: Any, options: dict[str, Any]) -> str:
    """Return what tyro prints about invalid options, with unwrapped lines."""
    complaint = io.StringIO()
    with unescaped_streams(), contextlib.redirect_stderr(complaint), _columns(NO_WRAP), contextlib.suppress(SystemExit):
        tyro.cli(kind, **options)
    return complaint.getvalue()


@contextlib.contextmanager
def _columns(width: int) -> Iterator[None]:
    """Set the terminal width seen by programs that query it."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(width)
    try:
        yield
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before


def run(
    main: Callable[[Sequence[str]], int],
    args: Sequence[str] | None = None,
    *,
    interrupted: Callable[[], object] = lambda: None,
) -> int:
    """Run `main` and return its exit code; ValueError, OSError and lack of memory become one line on stderr and code 2.

    Also answers `--version`. Control characters in names of files or classes are escaped in all output to the terminal.

    Args:
        main: Command to run.
        args: Command-line arguments; None uses those of the process.
        interrupted: Called after Ctrl-C was reported, before any unfinished work is freed.
    """
    args = sys.argv[1:] if args is None else args
    if "--version" in args:
        print(f"{DISTRIBUTION} {version()}")
        return OK
    with escaped_streams():
        return _run(main, args, interrupted)


def _run(main: Callable[[Sequence[str]], int], args: Sequence[str], interrupted: Callable[[], object]) -> int:
    try:
        with _interruptible():
            code = main(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader has closed the pipe, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter reports an error at exit
        return CUT_OFF
    except OSError as error:
        return _complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except ValueError as error:
        return _complain(str(error))
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        reason = first_line(error)
        return _complain(f"out of memory ({reason[:200]}): choose a smaller --batch-size, image size or model")
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        interrupted()
        return INTERRUPTED


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Make Ctrl-C raise KeyboardInterrupt, and raise it again if it was lost.

    Python prints and discards exceptions raised in code that it calls while freeing objects, for example in JAX.
    """
    before = sys.unraisablehook

    def again(lost: sys.UnraisableHookArgs) -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            before(lost)
            return
        timer = threading.Timer(0.05, _interrupt_main)
        timer.daemon = True
        timer.start()

    if threading.current_thread() is threading.main_thread():
        restore_ctrl_c()
    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before


def _interrupt_main() -> None:
    main = threading.main_thread().ident
    if main is None or not hasattr(signal, "pthread_kill"):  # Windows
        _thread.interrupt_main()
    else:
        signal.pthread_kill(main, signal.SIGINT)  # also interrupts a sleep


def run_and_end(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run `main` as `run` does and exit the process with its exit code; exit at once if it failed.

    A regular exit of Python and JAX would wait for writer threads, worker processes and other machines, which may never
    finish after a failure.
    """
    try:
        # Exit at once after Ctrl-C: freeing half-built objects would print errors.
        code = run(main, interrupted=lambda: _end(INTERRUPTED))
    except SystemExit:
        raise
    except BaseException:
        with escaped_streams():  # tracebacks contain file names too
            traceback.print_exc()
        code = FAILED
    if code != OK:
        _end(code)
    if threading.current_thread() is threading.main_thread():
        end_at_ctrl_c()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a run that is asked to stop twice still ends successfully
    sys.exit(code)


def _is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` reports a lack of memory; PyTorch on the CPU and XLA have no exception type for it."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_MEMORY.search(str(error))))


def _complain(text: str) -> int:
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    return MISUSED


def _end(code: int) -> NoReturn:
    """End the process and its workers without waiting for anything."""
    for worker in multiprocessing.active_children():
        worker.kill()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
