"""Self-test of the checks: every known mistake, inserted into a correct pair, must be detected and named."""

from t2t_parity.selftest.run import MUTATIONS, Outcome, Selftest, run
from t2t_parity.selftest.table import table, verdict
from t2t_parity.selftest.twins import TWIN_MISTAKES, TWINS

__all__ = ["MUTATIONS", "TWINS", "TWIN_MISTAKES", "Outcome", "Selftest", "run", "table", "verdict"]
