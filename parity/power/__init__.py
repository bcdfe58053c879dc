"""The power of a proof: which mistakes these inputs and weights would have shown, and to which they are blind."""

from parity.power.measure import BUDGET, power
from parity.power.of_proof import power_of
from parity.power.report import PowerReport, PowerRow

__all__ = ["BUDGET", "PowerReport", "PowerRow", "power", "power_of"]
