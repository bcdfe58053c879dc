"""Rows and causes for the comparison of both models' random draws."""

from __future__ import annotations

import math
from collections.abc import Sequence

from parity.measure.gates import Row
from parity.random_draws.matching import SAME_PROBABILITY, Match, Matching, Site, shared_states
from parity.report.findings import Cause

LAWS = ("dropout rate", "dropout draws", "random draw")
"""Kinds of rows on random draws."""


def draw_rows(matching: Matching, theirs: Sequence[Site], unknown: Sequence[str]) -> list[Row]:
    """Return one or two rows for each pair of draws, and one for each draw without a partner.

    Args:
        matching: Pairs of draws.
        theirs: All draws of JAX.
        unknown: Lines of JAX's source with draws whose values cannot be replaced.
    """
    rows = [row for pair in (*matching.matches, *matching.rates, *matching.sizes) for row in _pair_rows(pair)]
    rows += [_alone(site, "PyTorch", "JAX", matching.jax_constant) for site in matching.torch_only]
    rows += [_alone(site, "JAX", "PyTorch", ()) for site in matching.jax_only]
    for first, second in shared_states(theirs):
        note = f"in JAX two draws have one key, so that their numbers hang together: {first.place} and {second.place}"
        rows.append(_row(second.name, "random draw", math.inf, note))
    text = (
        "JAX draws in a way that nothing can be handed out for; write it with jax.random.bernoulli, uniform or normal"
    )
    return rows + [_row("", "random draw", math.inf, f"{text}: {line}") for line in unknown]


def _row(name: str, kind: str, error: float, note: str = "", gate: float = 0.0) -> Row:
    return Row(name, kind, "train", "-", error, gate, note=note)


def _masks(pair: Match) -> bool:
    return "bernoulli" in (pair.torch.law.family, pair.jax.law.family)


def _pair_rows(pair: Match) -> list[Row]:
    """Return rows that compare the probability (for masks) and the number of values drawn."""
    ours, theirs = pair.torch, pair.jax
    rows = []
    if _masks(pair):
        wrong = pair.error > SAME_PROBABILITY
        note = f"PyTorch draws 1 with probability {ours.law.keep:g}, JAX with {theirs.law.keep:g}" if wrong else ""
        rows.append(_row(ours.name, "dropout rate", pair.error, note, SAME_PROBABILITY))
    note = ""
    if ours.size != theirs.size:
        sizes = f"{list(ours.shape)} numbers, of JAX {list(theirs.shape)}"
        note = f"one draw of PyTorch has {sizes}: other elements share a number"
    kind = "dropout draws" if _masks(pair) else "random draw"
    return [*rows, _row(ours.name, kind, float(bool(note)), note)]


def _alone(site: Site, here: str, there: str, constant: Sequence[Site]) -> Row:
    kind = "dropout rate" if site.law.family == "bernoulli" else "random draw"
    note = f"{here} draws {site.place}; {there} draws nothing that answers to it"
    like = next((other for other in constant if other.size == site.size), None)
    if like is not None:
        note += f" but the same numbers at every step ({like.place}): its key does not change"
    return _row(site.name, kind, math.inf if site.law.keep is None else 1 - site.law.keep, note)


def threshold_rows(found: Sequence[tuple[Match, int, int]]) -> list[Row]:
    """Return rows for the result of `parity.training_mode.effects.other_thresholds`."""
    text = "the same uniform numbers have another effect in {} of {} trials: another rate, or another use of them"
    return [
        _row(pair.torch.name, "dropout rate", wrong / trials, text.format(wrong, trials))
        for pair, wrong, trials in found
    ]


def draw_causes(rows: Sequence[Row]) -> tuple[Cause, ...]:
    """Return a cause for each failing row: a difference between distributions is its own cause."""
    failed = [row for row in rows if row.kind in LAWS and not row.passed]
    return tuple(Cause(row.name, row.kind, row.note, row.error, 0.0) for row in failed)
