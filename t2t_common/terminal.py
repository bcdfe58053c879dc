"""What goes to a terminal: colours (none where NO_COLOR is set), and signs of life while something takes long.

Nothing of either goes into pipes and files. What waits is shown on stderr: print no result inside it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import track
from rich.status import Status

T = TypeVar("T")


class LastingConsole(Console):
    """A console of what goes on although nobody reads it any more, as when SIGTERM also ends the `tee` behind a run:
    from then on it prints nothing."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        ignore_broken_stdout()


def ignore_broken_stdout() -> None:
    """Has stdout lead to nowhere: whoever read it is gone, and the interpreter would complain in the end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(text: str) -> None:
    """Prints a line, unless whoever read the output is gone: that is no failure of what is told of."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        ignore_broken_stdout()


def make_console(kind: type[Console] = Console, **options: Any) -> Console:
    """rich's console with `options` of its own; without any colour or style where NO_COLOR (no-color.org) is set.

    A notebook gets the lines as a pipe does: rich's widgets need more than a kernel has, and kernels set FORCE_COLOR,
    which rich takes for a terminal.
    """
    if Console().is_jupyter:
        options = {"force_jupyter": False, "force_terminal": False, **options}
    return kind(color_system=None if os.environ.get("NO_COLOR") else "auto", **options)


def status(text: str) -> Status:
    """A context manager: `text` and a spinner on stderr, gone at its end; `.update(text)` changes it."""
    return make_console(stderr=True).status(text)


def bar(items: Iterable[T], text: str, total: int) -> Iterable[T]:
    """`items`, and on stderr how many of `total` are done and when they all will be."""
    console = make_console(stderr=True)
    if not console.is_terminal:  # rich 13 writes an empty line even for a bar that is disabled
        return items
    return track(items, text, total, console=console, transient=True)
