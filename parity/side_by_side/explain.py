"""Search for the cause of a difference in training: the change of PyTorch's arithmetic that gives JAX's numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from parity.causes.training.steps import series_cause
from parity.measure.gates import norm, relative
from parity.side_by_side.arithmetic import Arrays, Clip, Options, Rule
from parity.side_by_side.candidates import averages, candidates, masked
from parity.side_by_side.records import Step

GATE = 1e-10
"""Largest relF of the change of a parameter in one step."""

ROUNDING = 8 * 2.0**-53
"""Roundings of a parameter, relative to its size, which its change is the difference of."""


@dataclasses.dataclass(frozen=True)
class Explained:
    """A cause, and the rule that computes as JAX does; None if the cause is not in the optimizer's rule.

    `rates` are JAX's learning rates of each step, by the name of the parameter, if they are the cause; `error` is what
    remains of a moving average's error.
    """

    switch: str
    description: str
    rule: Rule | None = None
    rates: Sequence[Mapping[str, float]] | None = None
    error: float = 0.0


def error(given: np.ndarray, wanted: np.ndarray, params: np.ndarray) -> float:
    """Return the relF of one parameter's change, less what rounding of the parameter explains."""
    apart = max(norm(given - wanted) - ROUNDING * norm(params), 0.0) if np.isfinite(given).all() else math.inf
    return relative(apart, norm(wanted))


def pytorchs_rule(options: Mapping[str, Options | None], steps: Sequence[Step], reduction: str) -> Rule | None:
    """Return the rule that takes the steps that PyTorch took; None if it is not among those written out."""
    known = {name: o for name, o in options.items() if o is not None}
    if len(known) < len(options):
        return None
    rule = Rule(known, _clip_of(steps), reduction)
    rates = [step.rates for step in steps]
    return rule if fits(rule, steps, rates, [step.change for step in steps]) else None


def _clip_of(steps: Sequence[Step]) -> Clip:
    """Return how PyTorch's gradients were clipped, from those before and after it."""
    limits, largest = [], 0.0
    for step in steps:
        before, after = (math.hypot(*map(norm, x.values())) for x in (step.given, step.clipped))
        if relative(abs(after - before), before) > 1e-15:
            limits.append(after * (1 + 1e-6 / before))
            largest = max(largest, max(float(np.abs(g).max(initial=0.0)) for g in step.clipped.values()))
    if not limits:
        return Clip()
    for bound in dict.fromkeys((float(f"{limits[0]:.6g}"), limits[0])):
        if all(_close(Clip("norm", bound)(step.given), step.clipped) for step in steps):
            return Clip("norm", bound)
    return Clip("value", float(largest))


def _close(a: Arrays, b: Arrays) -> bool:
    return all(relative(norm(a[name] - b[name]), norm(b[name])) <= 1e-12 for name in b)


def fits(
    rule: Rule,
    steps: Sequence[Step],
    rates: Sequence[Mapping[str, float]],
    wanted: Sequence[Arrays],
    names: Sequence[str] | None = None,
) -> bool:
    """Return whether the rule gives the changes `wanted`, from PyTorch's parameters and gradients in every step."""
    state: dict = {}
    for step, rate, change in zip(steps, rates, wanted, strict=True):
        found = rule.step(step.start, step.gradients, rate, step.absent, state)
        for name in names or found:
            # Not `>`, so that NaN does not fit.
            if not error(found[name], change[name], step.start[name]) <= GATE:
                return False
    return True


def optimizer_cause(rule: Rule, steps: Sequence[Step], changes: Sequence[Arrays]) -> Explained | None:
    """Return the change of PyTorch's rule that gives JAX's `changes` in every step, or None."""
    steps, changes = steps[: len(changes)], list(changes)
    rates = [step.rates for step in steps]
    limit = rule.clip.limit if rule.clip.by != "none" else None
    tried = list(candidates(rule, len(steps[0].gradients), limit))
    first = [x for x in tried if x[0] == "gradient accumulation"]
    for name, text, other in first:
        if fits(other, steps, rates, changes):
            return Explained(name, text, other)
    found = _rates(rule, steps, changes) or _mask(rule, steps, changes)
    if found is not None:
        return found
    for name, text, other in tried[len(first) :]:
        if fits(other, steps, rates, changes):
            return Explained(name, text, other)
    return None


def _mask(rule: Rule, steps: Sequence[Step], changes: Sequence[Arrays]) -> Explained | None:
    """Return the cause if parameters decay in one framework only."""
    rates = [step.rates for step in steps]
    options, only = dict(rule.options), {True: list[str](), False: list[str]()}
    for name in rule.options:
        alone = dataclasses.replace(rule, options={name: rule.options[name]})
        if fits(alone, steps, rates, changes):
            continue
        other = next((x for x in masked(rule, name) if fits(x, steps, rates, changes)), None)
        if other is None:
            return None
        options[name] = other.options[name]
        only[bool(rule.options[name].decay)].append(name)
    decaying = sum(bool(o.decay) for o in rule.options.values())
    if len(only[True]) == decaying and not only[False]:
        return None  # no mask: JAX has no weight decay at all
    texts = [
        f"{_some(names)} decay{'s' if len(names) == 1 else ''} in {side} only"
        for side, names in (("PyTorch", only[True]), ("JAX", only[False]))
        if names
    ]
    return Explained("weight decay mask", "; ".join(texts), dataclasses.replace(rule, options=options))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _rates(rule: Rule, steps: Sequence[Step], changes: Sequence[Arrays]) -> Explained | None:
    """Return the cause if the changes are PyTorch's at other learning rates, one for each group of parameters."""
    state: dict = {}
    units = [rule.step(s.start, s.gradients, dict.fromkeys(rule.options, 1.0), s.absent, state) for s in steps]
    groups: dict[tuple, list[str]] = {}
    for name, options in rule.options.items():
        groups.setdefault((options, *(step.rates.get(name) for step in steps)), []).append(name)
    found: list[dict[str, float]] = [{} for _ in steps]
    for names in groups.values():
        for i, (unit, change) in enumerate(zip(units, changes, strict=True)):
            x, y = (np.concatenate([one[name].ravel() for name in names]) for one in (unit, change))
            factor = float(np.dot(x, y) / max(np.dot(x, x), 1e-300))
            if any(not error(factor * unit[n], change[n], steps[i].start[n]) <= GATE for n in names):
                return None
            found[i] |= dict.fromkeys(names, factor)
    differing = next((names[0] for names in groups.values() if _differ(names[0], steps, found)), None)
    if differing is None:
        return None
    ours, theirs = ([float(one[differing]) for one in x] for x in ([s.rates for s in steps], found))
    rounded = max(abs(b - a) for a, b in zip(ours, theirs, strict=True)) / max(map(abs, ours))
    if rounded < 1e-6:
        text = f"JAX computes the learning rate in float32: it differs by {rounded:.1e}"
        return Explained("learning rate in float32", text, rule, found)
    cause = series_cause(ours, theirs, gate=1e-8)
    if cause is None:
        listed = ", ".join(f"{a:.6g}/{b:.6g}" for a, b in zip(ours[:4], theirs[:4], strict=True))
        text = f"the learning rates (PyTorch's/JAX's) are {listed}, ..."
        return Explained("learning rate schedule", text, rule, found)
    text = cause.description
    if cause.switch == "schedule shift":  # "JAX is 1 behind"
        count, side = text.removeprefix("JAX is ").split()
        text = f"JAX's schedule is {count} step{'s' if count != '1' else ''} {side}"
    elif cause.switch == "learning rate":
        text = f"JAX's learning rate is PyTorch's {text}"
    return Explained(cause.switch, text, rule, found)


def _differ(name: str, steps: Sequence[Step], found: Sequence[Mapping[str, float]]) -> bool:
    largest = max(abs(step.rates[name]) for step in steps)
    return any(abs(found[i][name] - step.rates[name]) > 1e-8 * largest for i, step in enumerate(steps))


def gradient_cause(ours: Sequence[Arrays], theirs: Sequence[Arrays], size: int) -> tuple[str, str, float] | None:
    """Return (switch, description, factor) if all of JAX's gradients are PyTorch's times one number.

    `size` is the number of examples in a batch.
    """
    x, y = (np.concatenate([g[name].ravel() for g in side for name in sorted(ours[0])]) for side in (ours, theirs))
    factor = float(np.dot(x, y) / max(np.dot(x, x), 1e-300))
    if not norm(y - factor * x) <= GATE * abs(factor) * norm(x):
        return None
    text = f"JAX's gradients are PyTorch's times {factor:.6g}"
    if abs(factor - size) < 1e-9 * size:
        text += ", the number of examples: PyTorch's loss is their mean, JAX's their sum"
    elif abs(factor * size - 1) < 1e-9:
        text += f", 1 / {size}: PyTorch's loss is the sum over the examples, JAX's their mean"
    return "loss", text, factor


def average_cause(first: Arrays, steps: Sequence[Step], given: Sequence[Arrays], at: str) -> Explained | None:
    """Return the mistake that turns PyTorch's moving averages into JAX's `given`, or None."""
    starts, ends = [step.start for step in steps], [step.end for step in steps]
    own = [step.average for step in steps if step.average is not None]
    values = ends if at == "after" else starts
    decay = _fitted(own, values)
    if decay is None:
        return None
    for switch, text, predicted in averages(decay, first, starts, ends, at, _fitted(given, values)):
        if len(predicted) == len(given):
            pairs = [(a[n], b[n]) for a, b in zip(predicted, given, strict=True) for n in b]
            left = max(relative(norm(x - y), norm(y)) for x, y in pairs)
            if left <= GATE:
                return Explained(switch, text, error=left)
    return None


def _fitted(series: Sequence[Arrays], values: Sequence[Arrays]) -> float | None:
    """Return the decay of a moving average, from all of its updates but the first, which may be a copy."""
    top = bottom = 0.0
    for before, after, value in zip(series, series[1:], values[1:], strict=False):
        for name in after:
            way = before[name] - value[name]
            top += float(np.vdot(way, after[name] - value[name]))
            bottom += float(np.vdot(way, way))
    return float(f"{top / bottom:.9g}") if bottom > 0 else None
