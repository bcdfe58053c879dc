"""The whole catalogue: importing the modules that register entries."""

from parity.causes import attention, layouts, mixtures, pooling, positions, recurrent, values  # noqa: F401
from parity.causes.registry import ENTRIES, variants

__all__ = ["ENTRIES", "variants"]
