"""Command lines: options from dataclasses (tyro), every mistake of the user one line on stderr and exit code
2.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro

T = TypeVar("T")

OK, FAILED, MISUSED = 0, 1, 2


def parse(kind: type[T], args: Sequence[str], *, prog: str, description: str, default: T | None = None) -> T:
    """Options of the dataclass `kind` from `args`; `--help` prints and exits.

    Raises:
        ValueError: what tyro says about the options, in one line.
    """
    complaint = io.StringIO()
    start: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, args=list(args), prog=prog, description=description, **start)
    except SystemExit as end:
        if end.code in (0, None):
            raise
        text = re.sub(r"\x1b\[[0-9;]*m|[\u2500-\u257f]", " ", complaint.getvalue())  # colours and box lines
        raise ValueError(" ".join(text.split())) from None


def run(main: Callable[[Sequence[str]], int], args: Sequence[str] | None = None) -> int:
    """Exit code of `main`; ValueError and FileNotFoundError become one line on stderr and code 2."""
    try:
        return main(sys.argv[1:] if args is None else args)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return MISUSED
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
