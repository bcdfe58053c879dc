"""Source lines of JAX equations and PyTorch operations, in the code of the model rather than of a library."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from parity.precision.casts import is_library, place

CALLERS = 2
"""Number of calling lines shown with a line."""


def jax_line(eqn: Any) -> str:
    """Return file and line of the model's code that made an equation, and of its callers; "" if there is none.

    For example "port.py:12 (called at port.py:40)".
    """
    traceback = eqn.source_info.traceback
    lines: list[str] = []
    for frame in traceback.frames if traceback is not None else ():
        if is_library(frame.file_name):
            if lines and frame.file_name.startswith(OWN):
                break  # what called the check
            continue
        lines.append(place(frame.file_name, frame.line_num))
    called = [line for line in lines[1:] if line != lines[0]][:CALLERS]
    return "".join(lines[:1]) + (f" (called at {', '.join(called)})" if called else "")


OWN = str(Path(__file__).parents[1]) + "/"


def torch_line() -> str:
    """Return file and line of the model's code that is running; "" if all frames are of libraries."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not is_library(file):
            return place(file, frame.f_lineno)
        frame = frame.f_back
    return ""
