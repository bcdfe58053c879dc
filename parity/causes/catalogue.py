"""The whole catalogue: importing the modules that register entries."""

from parity.causes.registry import ENTRIES, variants
from parity.causes.switches import values  # noqa: F401

__all__ = ["ENTRIES", "variants"]
