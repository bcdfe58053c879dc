"""Self-test results as tables."""

from __future__ import annotations

import math

from rich.console import Group
from rich.table import Table

from t2t_parity.selftest.mutation import GROUPS
from t2t_parity.selftest.run import MARGIN, Selftest


def table(selftest: Selftest) -> Group:
    """Return tables with one line per mutation, per group and per false alarm."""
    return Group(_mutations(selftest), _groups(selftest))


def verdict(selftest: Selftest) -> str:
    """Return the verdict as one line."""
    outcomes = selftest.outcomes
    caught = sum(outcome.caught for outcome in outcomes)
    text = (
        f"{caught} of {len(outcomes)} mutations caught, {selftest.modules_named:.1%} of the modules and "
        f"{selftest.causes_named:.1%} of the causes named, {selftest.false_causes} false causes, "
        f"{len(selftest.false_alarms)} false alarms in {selftest.correct_runs} correct runs, {selftest.seconds:.0f} s"
    )
    return ("HOLDS: " if selftest.passed else "DOES NOT HOLD: ") + text


def _mutations(selftest: Selftest) -> Table:
    found = Table("group", "mutation", "above the gate", "module named", "cause named", "s", title="Mutations")
    for outcome in selftest.outcomes:
        margin = "NOT CAUGHT" if not outcome.caught else _times(outcome.margin)
        module = _named(outcome.module, outcome.module_right) + (f" ({outcome.raised})" if outcome.raised else "")
        cause = _named(outcome.cause, outcome.cause_right) + _falsely(outcome.false_causes)
        right = outcome.passed and False not in (outcome.module_right, outcome.cause_right)
        cells = (outcome.group, outcome.mutation, margin, module, cause, f"{outcome.seconds:.1f}")
        found.add_row(*cells, style=None if right else "red")
    return found


def _falsely(causes: tuple[str, ...]) -> str:
    return f"; FALSE: {', '.join(causes)}" if causes else ""


def _times(margin: float) -> str:
    if not math.isfinite(margin):
        return "not a matter of size"
    return f"{margin:.0e}" + ("" if margin >= MARGIN else " TOO CLOSE")


def _named(name: str | None, right: bool | None) -> str:
    if right is None:
        return "-"
    return (name or "nothing") + ("" if right else " WRONG")


def _groups(selftest: Selftest) -> Table:
    columns = ("group", "mutations", "caught", "least margin", "modules", "causes", "false causes")
    found = Table(*columns, title="By group")
    for group in GROUPS:
        outcomes = [outcome for outcome in selftest.outcomes if outcome.group == group]
        if outcomes:
            caught = sum(outcome.caught for outcome in outcomes)
            margin = min(outcome.margin for outcome in outcomes)
            modules = _share([outcome.module_right for outcome in outcomes])
            causes = _share([outcome.cause_right for outcome in outcomes])
            false = str(sum(bool(outcome.false_causes) for outcome in outcomes))
            found.add_row(group, str(len(outcomes)), str(caught), _times(margin), modules, causes, false)
    for alarm in selftest.false_alarms:
        found.add_row("false alarm", alarm, *[""] * 5, style="red")
    return found


def _share(judged: list[bool | None]) -> str:
    known = [right for right in judged if right is not None]
    return f"{sum(known)} of {len(known)}" if known else "-"
