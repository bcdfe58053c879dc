"""The power of a proof: which mistakes these inputs and weights would have shown, and to which they are blind."""

from parity.power.during_check import power_of
from parity.power.measure import BUDGET, power
from parity.report.power_report import PowerReport, PowerRow

__all__ = ["BUDGET", "PowerReport", "PowerRow", "power", "power_of"]
