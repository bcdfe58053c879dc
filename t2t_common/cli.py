"""Command lines: options from dataclasses (tyro), every mistake of the user one line on stderr and exit code
2.
"""

from __future__ import annotations

import _thread
import contextlib
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

from t2t_common.complaints import rephrase
from t2t_common.metavars import registry
from t2t_common.scripts import called
from t2t_common.terminal import escaped_streams, unescaped_streams
from t2t_config.extras import DISTRIBUTION, end_at_ctrl_c, restore_ctrl_c, version

T = TypeVar("T")

_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|RESOURCE_EXHAUSTED", re.IGNORECASE)

OK, FAILED, MISUSED = 0, 1, 2
INTERRUPTED, CUT_OFF = 130, 141
"""As a shell has them: 128 and the number of the signal, SIGINT and SIGPIPE."""

WIDE = 10_000
"""Columns in which tyro breaks no line of what it says."""


def parse(kind: type[T], args: Sequence[str], *, prog: str, description: str, default: T | None = None) -> T:
    """Options of the dataclass `kind` from `args`; `--help` prints and exits.

    Raises:
        ValueError: what tyro says about the options, in one line.
    """
    tyro._experimental_options["ansi_codes"] = not os.environ.get("NO_COLOR")
    options: dict[str, Any] = {} if default is None else {"default": default}
    prog = called(prog)
    options |= {"args": list(args), "prog": prog, "description": description}
    with registry():
        try:
            with unescaped_streams(), contextlib.redirect_stderr(io.StringIO()):  # --help has colours
                return tyro.cli(kind, **options)
        except ValueError as error:  # of the options themselves, which tyro 1.0.0 lets pass
            raise ValueError(f"{error} (see {prog} --help)") from None
        except SystemExit as end:
            if end.code in (0, None):
                raise
        raise ValueError(rephrase(_refusal(kind, options), prog))


def _refusal(kind: Any, options: dict[str, Any]) -> str:
    """What tyro prints about options that it refuses, in lines that are not broken."""
    complaint = io.StringIO()
    with unescaped_streams(), contextlib.redirect_stderr(complaint), _columns(WIDE), contextlib.suppress(SystemExit):
        tyro.cli(kind, **options)
    return complaint.getvalue()


@contextlib.contextmanager
def _columns(width: int) -> Iterator[None]:
    """The width of the terminal, as those see it who ask for it."""
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
    """Exit code of `main`; ValueError, OSError and a lack of memory become one line on stderr and code 2.

    Answers `--version`. Whatever is printed meanwhile, no name of a file or class gives orders to the terminal.

    Args:
        main: the command.
        args: of the command line; None takes those of the process.
        interrupted: called after Ctrl-C was said, before anything that was under way is freed.
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
        interrupted()
        return INTERRUPTED


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, and once more where that was lost: an error in what Python calls while it frees
    objects, as JAX lets it, is printed and forgotten."""
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
        signal.pthread_kill(main, signal.SIGINT)  # ends a sleep, too


def run_and_end(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Ends the process by the exit code of `main`, as `run` has it; at once, where it failed.

    In good order Python and JAX would wait for threads that write, for worker processes, for other machines: where
    something failed, that may be for ever.
    """
    try:
        # At once after Ctrl-C: what was being built half would complain while it is freed.
        code = run(main, interrupted=lambda: _end(INTERRUPTED))
    except SystemExit:
        raise
    except BaseException:
        with escaped_streams():  # names of files are in tracebacks too
            traceback.print_exc()
        code = FAILED
    if code != OK:
        _end(code)
    if threading.current_thread() is threading.main_thread():
        end_at_ctrl_c()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a run that was asked to stop twice has ended well all the same
    sys.exit(code)


def _tells_of_memory(error: BaseException) -> bool:
    """PyTorch on the CPU and XLA have no type of their own for it."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_MEMORY.search(str(error))))


def _complain(text: str) -> int:
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    return MISUSED


def _end(code: int) -> NoReturn:
    """Ends the process and its workers without waiting for anything."""
    for worker in multiprocessing.active_children():
        worker.kill()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
