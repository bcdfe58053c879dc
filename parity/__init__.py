"""Carries weights between PyTorch and Flax NNX, and proves that two models are one.

Knows no model: point it at any `torch.nn.Module` and any `flax.nnx.Module`. Where PyTorch is not installed, the ledger
of names and layouts is all there is.
"""

from typing import Any

from parity.ledger import Entry, Ledger, build_ledger
from parity.rules import LeafRule, Rules

try:
    from parity.check import assert_parity, check
    from parity.compare import Gates, Row, rel_f
    from parity.convert import jax_to_torch, torch_to_jax
    from parity.losses import Loss, cross_entropy, projection
    from parity.report import Report
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "torch":
        raise

__all__ = [
    "Entry",
    "Gates",
    "LeafRule",
    "Ledger",
    "Loss",
    "Report",
    "Row",
    "Rules",
    "assert_parity",
    "build_ledger",
    "check",
    "cross_entropy",
    "jax_to_torch",
    "projection",
    "rel_f",
    "torch_to_jax",
]


def __getattr__(name: str) -> Any:
    """Only asked for what is not here: without PyTorch, most of it."""
    if name in __all__:
        raise ImportError(f"parity.{name} needs PyTorch: pip install 't2t-vit[torch]'", name="torch")
    raise AttributeError(f"module 'parity' has no attribute {name!r}")
