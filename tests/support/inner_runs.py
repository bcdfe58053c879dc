"""Imported by tests that run pytest inside a test with `pytester`.

`pytester` forgets afterwards whatever the inner run imported first. That serves its test files, but libraries do not
survive it: a second `torch._dynamo` registers its operators again, which raises, and a second module of `parity`
defines functions that are no longer those that `parity` has exported. So what is imported from a library stays.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

from _pytest import pytester

ROOT = Path(__file__).parents[2]
LIBRARIES = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), sysconfig.get_path("stdlib"))


def is_of_library(name: str) -> bool:
    """Whether an imported module is built in, of an installed package or of one of this repository's."""
    file = getattr(sys.modules[name], "__file__", None)
    if not file or file.startswith(LIBRARIES):
        return True
    return Path(file).is_relative_to(ROOT) and not Path(file).is_relative_to(ROOT / "examples")


class LibrariesStay(pytester.SysModulesSnapshot):
    """Restores the imported modules of before an inner run, without forgetting libraries."""

    def __init__(self, preserve: Callable[[str], bool] | None = None) -> None:
        super().__init__(preserve=lambda name: is_of_library(name) or bool(preserve and preserve(name)))


pytester.SysModulesSnapshot = LibrariesStay  # type: ignore[misc]
