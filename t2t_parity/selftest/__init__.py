"""Self-test of the checks: every known mistake, inserted into a correct pair, must be detected and named."""

from t2t_parity.selftest.run import MUTATIONS, Outcome, Selftest, run
from t2t_parity.selftest.table import table, verdict

__all__ = ["MUTATIONS", "Outcome", "Selftest", "run", "table", "verdict"]
