"""Convert weights between PyTorch and Flax NNX, and check that two models are equivalent.

The package is model-agnostic: it takes any `torch.nn.Module` and any `flax.nnx.Module`.
"""

import sys

if sys.argv[:1] == ["-m"]:  # `python -m parity`: the command line may depend on this project's own models
    from parity.requirements import prepare_command

    prepare_command()
try:
    from parity.carry.by_value import ledger_by_value
    from parity.carry.convert import Entry, Ledger, build_ledger, jax_to_torch, torch_to_jax
    from parity.carry.random_weights import randomize
    from parity.carry.rules import LeafRule, Rules
    from parity.measure.gates import Gates, Row, rel_f
    from parity.proof.check import assert_parity, check
    from parity.recording.inputs import Inputs
    from parity.report.report import Report
    from parity.runs.losses import Loss, cross_entropy, projection
    from parity.suggest.suggest import suggest_rules
except ModuleNotFoundError as missing:
    from parity.requirements import explanation

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
    "ledger_by_value",
    "projection",
    "randomize",
    "rel_f",
    "suggest_rules",
    "torch_to_jax",
]
