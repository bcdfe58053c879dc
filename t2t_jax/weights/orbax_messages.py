"""Messages of Orbax's threads, which a command hides."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Hide what Orbax's threads print about a failed write, whose error is also raised; for commands.

    They log long tracebacks, and writes that went on after another array had failed, and that nothing awaits any more,
    report a closed event loop.
    """
    absl, asyncio, show = logging.getLogger("absl"), logging.getLogger("asyncio"), sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if unraisable.object is not None or str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    absl.addFilter(_not_logged_by_orbax)
    asyncio.addFilter(_not_about_orbax)
    sys.unraisablehook = hook
    try:
        yield
    finally:
        absl.removeFilter(_not_logged_by_orbax)
        asyncio.removeFilter(_not_about_orbax)
        sys.unraisablehook = show


def _not_logged_by_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def _not_about_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.getMessage()
