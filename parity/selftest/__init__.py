"""The proof that the proof can fail: every known mistake, put into a correct pair, has to be caught and named."""

from parity.selftest.run import MUTATIONS, Outcome, Selftest, run
from parity.selftest.table import table, verdict

__all__ = ["MUTATIONS", "Outcome", "Selftest", "run", "table", "verdict"]
