"""Source lines of JAX equations and PyTorch operations, in the code of the model rather than of a library."""

from __future__ import annotations

import sys
from typing import Any

from parity.precision.casts import is_library, place


def jax_line(eqn: Any) -> str:
    """Return file and line of the model's code that made an equation, e.g. "port.py:12"; "" if there is none."""
    traceback = eqn.source_info.traceback
    for frame in traceback.frames if traceback is not None else ():
        if not is_library(frame.file_name):
            return place(frame.file_name, frame.line_num)
    return ""


def torch_line() -> str:
    """Return file and line of the model's code that is running; "" if all frames are of libraries."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not is_library(file):
            return place(file, frame.f_lineno)
        frame = frame.f_back
    return ""
