"""Carries weights between PyTorch and Flax NNX, and proves that two models are one.

Knows no model: point it at any `torch.nn.Module` and any `flax.nnx.Module`.
"""

import sys

if sys.argv[:1] == ["-m"]:  # `python -m parity`, whose face may know our models
    from parity.needs import prepare_command

    prepare_command()
try:
    from parity.check import assert_parity, check
    from parity.compare import Gates, Row, rel_f
    from parity.convert import Entry, Ledger, build_ledger, jax_to_torch, torch_to_jax
    from parity.inputs import Inputs
    from parity.losses import Loss, cross_entropy, projection
    from parity.report import Report
    from parity.rules import LeafRule, Rules
except ModuleNotFoundError as missing:
    from parity.needs import explanation

    raise explanation(missing) from None

__all__ = [
    "Entry",
    "Gates",
    "Inputs",
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
