"""The complete catalogue of switches; importing this module registers all entries."""

from parity.causes.registry import ENTRIES, variants
from parity.causes.switches import attention, layouts, mixtures, pooling, positions, recurrent, values  # noqa: F401

__all__ = ["ENTRIES", "variants"]
