"""Casts to a format narrower than a run's precision, such as `x.float()` in a float64 run."""

from __future__ import annotations

import dataclasses
import functools
import sys
import sysconfig
from pathlib import Path

FRACTION = {"float8_e4m3fn": 3, "float8_e5m2": 2, "bfloat16": 7, "float16": 10, "float32": 23, "complex64": 23}
"""Number of fraction bits of the formats below float64."""

WHOLE = {"float64": 52, "complex128": 52, **FRACTION}

COMPLEX = {"float64": "complex128", "float32": "complex64"}


def wider(format_: str, precision: str) -> str | None:
    """Return the format that replaces `format_` in a run in `precision`; None if it is not narrower."""
    if format_ not in FRACTION or FRACTION[format_] >= WHOLE[precision]:
        return None
    return COMPLEX[precision] if format_.startswith("complex") else precision


@dataclasses.dataclass(frozen=True)
class Cast:
    """A place in a model that requests a narrow format.

    Attributes:
        module: Path of the innermost module being called.
        format: Name of the format, e.g. "float32" or "bfloat16".
        where: File and line of the model's code, e.g. "norm.py:12"; "" if there is none (a framework layer).
        made: Whether values are created in this format (`arange`, `zeros`, a table), not rounded to it.
        library: Whether a function of JAX or flax casts on its own, not the model that calls the function.
    """

    module: str
    format: str
    where: str = ""
    made: bool = False
    library: bool = False


@functools.cache
def is_library(file: str) -> bool:
    """Return whether a source file belongs to a framework, the standard library or `parity`, not to a model."""
    if file.startswith(("<", _OWN)):
        return not file.startswith(_OWN + "selftest")  # mutations there stand in for a port's code
    if file.startswith(_STANDARD) and "site-packages" not in file:
        return True
    return any(file.startswith(root) for root in map(_root, LIBRARIES) if root)


LIBRARIES = ("jax", "jaxlib", "flax", "optax", "equinox", "haiku", "torch", "numpy", "einops")


def _root(library: str) -> str | None:
    file = getattr(sys.modules.get(library), "__file__", None)
    return None if file is None else str(Path(file).parent) + "/"


_OWN = str(Path(__file__).parents[1]) + "/"
_STANDARD = sysconfig.get_path("stdlib") + "/"


def place(file: str, line: int) -> str:
    return f"{Path(file).name}:{line}"
