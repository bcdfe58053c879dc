"""Source lines of JAX equations and PyTorch operations, in the code of the model rather than of a library."""

from __future__ import annotations

import re
import sys
from typing import Any

from parity.precision.casts import is_library, place
from parity.precision.jax_casts import Scope

CALLERS = 2
"""Number of calling lines shown with a line."""


def jax_line(scope: Scope) -> str:
    """Return file and line of the model's code that made an equation, and of its callers; "" if there is none.

    For example "port.py:12 (called at port.py:40)".
    """
    lines = list(dict.fromkeys(place(file, line) for file, line in scope.lines))
    called = lines[1 : 1 + CALLERS]
    return "".join(lines[:1]) + (f" (called at {', '.join(called)})" if called else "")


Calls = tuple[tuple[str, str], ...]
"""The functions that are running, by file and name, the outermost first."""


def calls(scope: Scope) -> Calls:
    """Return the functions that were running when an equation was traced, without those of JAX and NumPy."""
    traceback = None if scope.eqn is None else scope.eqn.source_info.traceback
    frames = [] if traceback is None else traceback.frames
    own = tuple((x.file_name, x.function_name) for x in reversed(frames) if not NUMERICAL.search(x.file_name))
    around = () if scope.outer is None else calls(scope.outer)
    if not around or own[: len(around)] == around:
        return own
    # A function that is compiled by itself may have been traced earlier, for another caller.
    return around if own[:1] == around[:1] else (*around, *own)


NUMERICAL = re.compile(r"/(jax|jaxlib|numpy)/")


def torch_line() -> str:
    """Return file and line of the model's code that is running; "" if all frames are of libraries."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not is_library(file):
            return place(file, frame.f_lineno)
        frame = frame.f_back
    return ""
