"""Power of a proof: which mistakes a check with these inputs and weights would detect, and which it would miss."""

from parity.power.during_check import power_of
from parity.power.measure import BUDGET, power
from parity.report.power_report import PowerReport, PowerRow

__all__ = ["BUDGET", "PowerReport", "PowerRow", "power", "power_of"]
