"""Power of a check that is in progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from parity.power.measure import BUDGET, power
from parity.recording.inputs import Arguments
from parity.report.power_report import PowerReport
from parity.runs.losses import Loss

if TYPE_CHECKING:
    from parity.proof.stages import Proof


def power_of(
    proof: Proof, level: str, loss: Loss | None, budget: bool | float, tell: Callable[[str], None]
) -> PowerReport:
    """Run `power` with the model, inputs, pairs, gates and loss of a check; `budget` True means the default."""
    return power(
        proof.torch_model,
        Arguments(proof.arrays, proof.apply),
        level=level,
        gates=proof.gates,
        loss=loss,
        budget=BUDGET if budget is True else budget,
        paired={pair.torch for pair in proof.pairing.pairs},
        progress=lambda line, share: tell(f"power, {share:.0%} of the budget: {line}"),
    )
