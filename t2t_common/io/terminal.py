"""Terminal output: colours (none if NO_COLOR is set) and progress displays.

Neither is written to pipes and files. Progress is shown on stderr: do not print results meanwhile. Names of files,
folders and classes are shown literally: not interpreted as rich's markup or as control sequences (see `plain`).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.status import Status
from rich.text import Text

from t2t_config.text import escaped

T = TypeVar("T")

KEPT = "\n\t"
"""Control characters that may go to a terminal; a carriage return is allowed only at the start of the text."""


class PipeSafeConsole(Console):
    """Console that becomes silent once its output pipe is closed, as when SIGTERM also ends the `tee` behind a run."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        ignore_broken_stdout()


def ignore_broken_stdout() -> None:
    """Redirect stdout to the null device, as the interpreter would otherwise report the broken pipe at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(text: str) -> None:
    """Print a line; a closed output pipe is ignored."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        ignore_broken_stdout()


def make_console(kind: type[Console] = Console, **options: Any) -> Console:
    """Create a rich console with `options`; without colours and styles if NO_COLOR (no-color.org) is set.

    In a notebook the output is plain lines, as in a pipe: rich's widgets need more than a kernel provides, and kernels
    set FORCE_COLOR, which rich interprets as a terminal.
    """
    if Console().is_jupyter:
        options = {"force_jupyter": False, "force_terminal": False, **options}
    return kind(color_system=None if os.environ.get("NO_COLOR") else "auto", **options)


def plain(text: str) -> Text:
    """Return `text` as a literal for rich: brackets and colons are not markup, unprintable characters are escaped."""
    return Text(escaped(text, keep=KEPT))


def status(text: str) -> Status:
    """Return a context manager that shows `text` and a spinner on stderr; `.update(text)` changes the text."""
    return make_console(stderr=True).status(plain(text))


def bar(items: Iterable[T], text: str, total: int) -> Iterable[T]:
    """Iterate over `items` with a progress bar on stderr: how many of `total` are done, and the remaining time."""
    console = make_console(stderr=True)
    if not console.is_terminal:  # rich 13 writes an empty line even for a disabled bar
        return items
    return track(items, escape(escaped(text)), total, console=console, transient=True)


class EscapingStream:
    """Stream that escapes unprintable characters; otherwise it behaves as the wrapped stream.

    Attributes:
        unescaped: Wrapped stream, for code that writes its own escape sequences.
        rich_proxied_file: The same stream, under the name that rich uses.
    """

    def __init__(self, stream: TextIO) -> None:
        self.unescaped = self.rich_proxied_file = stream

    def write(self, text: str) -> int:
        """Write all of `text`; return its length."""
        back = "\r" if text.startswith("\r") else ""
        self.unescaped.write(back + _encodable(escaped(text.removeprefix(back), keep=KEPT), self.unescaped.encoding))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unescaped, name)


def _encodable(text: str, encoding: str | None) -> str:
    """Return `text` with characters escaped that `encoding` (that of a plain C locale, for example) cannot
    represent."""
    encoding = encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


@contextlib.contextmanager
def escaped_streams() -> Iterator[None]:
    """Context manager that replaces stdout and stderr with `EscapingStream`s while a command runs."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        stream if isinstance(stream, EscapingStream) else EscapingStream(stream)  # type: ignore[assignment]
        for stream in before
    )
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class ColourlessStream:
    """Stream that is no terminal to libraries that write colours to terminals; otherwise it is the wrapped stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def isatty(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def unescaped_streams() -> Iterator[None]:
    """Context manager for a library that writes its own escape sequences (no colours if NO_COLOR is set) and no
    untrusted text."""
    out, err = (getattr(stream, "unescaped", stream) for stream in (sys.stdout, sys.stderr))
    if os.environ.get("NO_COLOR"):
        out, err = ColourlessStream(out), ColourlessStream(err)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield
