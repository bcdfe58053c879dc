"""Casts to a format narrower than a run's precision: `x.float()` in a float64 run, say."""

from __future__ import annotations

import dataclasses
import functools
import sys
import sysconfig
from pathlib import Path

FRACTION = {"float8_e4m3fn": 3, "float8_e5m2": 2, "bfloat16": 7, "float16": 10, "float32": 23, "complex64": 23}
"""Bits of the fraction of the formats below float64."""

WHOLE = {"float64": 52, "complex128": 52, **FRACTION}

COMPLEX = {"float64": "complex128", "float32": "complex64"}


def wider(format_: str, precision: str) -> str | None:
    """What takes the place of `format_` in a run in `precision`; None if it is no narrower."""
    if format_ not in FRACTION or FRACTION[format_] >= WHOLE[precision]:
        return None
    return COMPLEX[precision] if format_.startswith("complex") else precision


@dataclasses.dataclass(frozen=True)
class Cast:
    """One place in a model that asks for a narrow format.

    Attributes:
        module: path of the innermost module that was being called.
        format: "float32", "bfloat16" ...
        where: file and line of the model's code, "norm.py:12"; "" where there is none (a layer of the framework).
        made: numbers made in this format (`arange`, `zeros`, a table), not wider ones rounded to it.
        library: a function of JAX's or flax's asks for it, not the model that calls the function.
    """

    module: str
    format: str
    where: str = ""
    made: bool = False
    library: bool = False


@functools.cache
def is_library(file: str) -> bool:
    """Whether a source file belongs to a framework, to Python or to `parity`, not to somebody's model."""
    if file.startswith(("<", _OWN)):
        return not file.startswith(_OWN + "selftest")  # the mutations there stand for a port's code
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
