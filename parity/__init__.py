"""Convert weights between PyTorch and JAX, and check that two models are equivalent.

The package is model-agnostic: it takes any `torch.nn.Module` and any `flax.nnx.Module`; `linen`, `equinox`, `haiku` and
`function` make one of a model of another JAX library, or of any function. What it exports, and with it PyTorch and JAX,
is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parity.adapters.equinox import equinox
    from parity.adapters.function import function
    from parity.adapters.haiku import haiku
    from parity.adapters.linen import linen
    from parity.by_value.ledger import ledger_by_value
    from parity.carry.convert import Entry, Ledger, build_ledger, jax_to_torch, torch_to_jax
    from parity.carry.random_weights import randomize
    from parity.carry.rules import LeafRule, Rules
    from parity.measure.gates import Gates, Row, rel_f
    from parity.optimizer_state.handover import OptaxOptimizer, optimizer_to_optax, optimizer_to_torch
    from parity.pair import Pair
    from parity.proof.check import assert_parity, check
    from parity.recording.inputs import Inputs
    from parity.report.report import Report
    from parity.runs.losses import Loss, cross_entropy, projection
    from parity.side_by_side.train import train
    from parity.side_by_side.training_report import TrainReport
    from parity.suggest.suggest import suggest_rules
    from parity.verify.verdict import Verdict
    from parity.verify.verify import verify_port

__all__ = [
    "Entry",
    "Gates",
    "Inputs",
    "LeafRule",
    "Ledger",
    "Loss",
    "OptaxOptimizer",
    "Pair",
    "Report",
    "Row",
    "Rules",
    "TrainReport",
    "Verdict",
    "assert_parity",
    "build_ledger",
    "check",
    "cross_entropy",
    "equinox",
    "function",
    "haiku",
    "jax_to_torch",
    "ledger_by_value",
    "linen",
    "optimizer_to_optax",
    "optimizer_to_torch",
    "projection",
    "randomize",
    "rel_f",
    "suggest_rules",
    "torch_to_jax",
    "train",
    "verify_port",
]

_WHERE = {
    "parity.adapters.equinox": ("equinox",),
    "parity.adapters.function": ("function",),
    "parity.adapters.haiku": ("haiku",),
    "parity.adapters.linen": ("linen",),
    "parity.by_value.ledger": ("ledger_by_value",),
    "parity.carry.convert": ("Entry", "Ledger", "build_ledger", "jax_to_torch", "torch_to_jax"),
    "parity.carry.random_weights": ("randomize",),
    "parity.carry.rules": ("LeafRule", "Rules"),
    "parity.measure.gates": ("Gates", "Row", "rel_f"),
    "parity.optimizer_state.handover": ("OptaxOptimizer", "optimizer_to_optax", "optimizer_to_torch"),
    "parity.pair": ("Pair",),
    "parity.proof.check": ("assert_parity", "check"),
    "parity.recording.inputs": ("Inputs",),
    "parity.report.report": ("Report",),
    "parity.runs.losses": ("Loss", "cross_entropy", "projection"),
    "parity.side_by_side.train": ("train",),
    "parity.side_by_side.training_report": ("TrainReport",),
    "parity.suggest.suggest": ("suggest_rules",),
    "parity.verify.verdict": ("Verdict",),
    "parity.verify.verify": ("verify_port",),
}
"""Module -> the names that are exported from it; as the imports above, which are for type checkers."""


if not TYPE_CHECKING:  # to whom an unknown name is an error

    def __getattr__(name: str) -> Any:
        """Import an exported name when it is first used.

        Raises:
            ImportError: PyTorch, JAX or another package is not installed; the message says what to install.
        """
        module = next((module for module, names in _WHERE.items() if name in names), None)
        if module is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            value = getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            from parity.requirements import explanation

            raise explanation(error) from None
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
