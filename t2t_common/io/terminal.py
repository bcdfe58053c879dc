"""What goes to a terminal: colours (none where NO_COLOR is set), and signs of life while something takes long.

Nothing of either goes into pipes and files. What waits is shown on stderr: print no result inside it. Names of files,
folders and classes are shown as they are: never as rich's markup, and never as orders to the terminal (see `plain`).
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
"""Control characters that may go to a terminal; a carriage return only where a line begins anew with it."""


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


def plain(text: str) -> Text:
    """`text` for rich as it is: brackets and colons are no markup, characters that cannot be printed are escaped."""
    return Text(escaped(text, keep=KEPT))


def status(text: str) -> Status:
    """A context manager: `text` and a spinner on stderr, gone at its end; `.update(text)` changes it."""
    return make_console(stderr=True).status(plain(text))


def bar(items: Iterable[T], text: str, total: int) -> Iterable[T]:
    """`items`, and on stderr how many of `total` are done and when they all will be."""
    console = make_console(stderr=True)
    if not console.is_terminal:  # rich 13 writes an empty line even for a bar that is disabled
        return items
    return track(items, escape(escaped(text)), total, console=console, transient=True)


class EscapingStream:
    """A stream on which what cannot be printed arrives escaped; in all else it is the stream below.

    Attributes:
        unescaped: the stream below, for what writes escape sequences of its own.
        rich_proxied_file: the same, by the name under which rich looks for it.
    """

    def __init__(self, stream: TextIO) -> None:
        self.unescaped = self.rich_proxied_file = stream

    def write(self, text: str) -> int:
        """Writes all of `text`; its length."""
        back = "\r" if text.startswith("\r") else ""
        self.unescaped.write(back + _encodable(escaped(text.removeprefix(back), keep=KEPT), self.unescaped.encoding))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unescaped, name)


def _encodable(text: str, encoding: str | None) -> str:
    """`text`, with what `encoding` (that of a plain C locale, say) does not have escaped."""
    encoding = encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


@contextlib.contextmanager
def escaped_streams() -> Iterator[None]:
    """Around a command: stdout and stderr are `EscapingStream`s, whoever prints."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        stream if isinstance(stream, EscapingStream) else EscapingStream(stream)  # type: ignore[assignment]
        for stream in before
    )
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


@contextlib.contextmanager
def unescaped_streams() -> Iterator[None]:
    """Around a library that writes escape sequences of its own, and no text of strangers."""
    with (
        contextlib.redirect_stdout(getattr(sys.stdout, "unescaped", sys.stdout)),
        contextlib.redirect_stderr(getattr(sys.stderr, "unescaped", sys.stderr)),
    ):
        yield
