"""Causes of wrong gradients where JAX's modules are not known: the change under which PyTorch has JAX's gradients.

One step of PyTorch's model is altered, and the loss is differentiated by all parameters. The alteration that gives all
of JAX's gradients is the cause, and the module that runs the step is at fault.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from parity.causes.recordings import record
from parity.causes.replay import Alter, Recording, Step, tensors_of
from parity.causes.switches.values import ACTIVATIONS
from parity.causes.training.gradients import Direction, Term, derivatives, detached, require_gradients, with_slope
from parity.measure.gates import norm, relative
from parity.recording.capture import ROOT
from parity.recording.inputs import Apply
from parity.report.findings import Cause

MOST_TRIED = 200
"""Number of alterations, each of which takes a forward and a backward pass of the model."""

SLOPES = ("gelu", "relu", "silu", "sigmoid", "tanh", "relu6", "hardswish", "hardsigmoid", "mish", "elu", "softplus")


def whole_gradient_cause(
    model: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    apply: Apply,
    wanted: Mapping[str, np.ndarray],
    given: Mapping[str, np.ndarray],
    by_outputs: Sequence[np.ndarray],
    suspects: Sequence[str],
    gate: float,
) -> Cause | None:
    """Return the one alteration that explains all wrong gradients; None if none of those tried does.

    Args:
        model, inputs, apply: PyTorch's model in float64, and how it is called.
        wanted, given: Gradients of PyTorch and of JAX by the parameters, in PyTorch's names and layouts.
        by_outputs: Gradients of the loss by the model's outputs.
        suspects: Paths of the modules whose steps are altered, the likeliest first.
        gate: Largest error of a right gradient.
    """
    names = [name for name in wanted if name in given and wanted[name].shape == given[name].shape]
    terms = [Term(("parameter", name, 0), f"parameter {name}", wanted[name], given[name]) for name in names]
    largest = max((norm(term.wanted) for term in terms), default=0.0)
    wrong = [term for term in terms if term.error(largest) > gate]
    if not wrong:
        return None
    before = max(term.error(largest) for term in wrong)
    zero = _never_trained(wrong)
    if zero is not None:
        return Cause(zero or "the model", "gradient cut", f"JAX's gradient by {_listed(wrong)} is zero", before, 0.0)
    try:
        recording = record(model, inputs, ROOT, {ROOT}, apply)
        if recording is None:
            return None
        recording.run()
        _, steps = recording.run()
    except Exception:  # user modules may raise anything when replayed
        return None
    require_gradients(recording)

    def direction(key: Any, what: str, index: int, shape: tuple[int, ...]) -> np.ndarray:
        return by_outputs[index]

    if _left(recording, terms, direction, largest, ()) > gate:
        return None  # the replay does not reproduce PyTorch's own gradients
    right = [dataclasses.replace(term, wanted=term.given) for term in terms]
    factors = _factors(wrong)
    tried = 0
    for path in suspects:
        for switch, text, step, alter in _alterations([s for s in steps if s.module == path], factors):
            if (tried := tried + 1) > MOST_TRIED:
                return None
            left = _left(recording, right, direction, largest, (((step.place, step.name, step.occurrence), alter),))
            if left <= gate:
                return Cause(path or "the model", switch, text + step.where, before, left)
    return None


def _never_trained(wrong: Sequence[Term]) -> str | None:
    """Return the module that holds all parameters with a wrong gradient, if that is zero in JAX; None otherwise."""
    owners = {str(term.by[1]).rpartition(".")[0] for term in wrong}
    return owners.pop() if len(owners) == 1 and not any(term.given.any() for term in wrong) else None


def _listed(wrong: Sequence[Term]) -> str:
    return ", ".join(term.text for term in wrong[:4]) + (", ..." if len(wrong) > 4 else "")


def _factors(wrong: Sequence[Term]) -> list[float]:
    """Return the factors, at most three, by which whole gradients differ."""
    found: list[float] = []
    for term in wrong:
        power = norm(term.wanted) ** 2
        factor = float(np.vdot(term.wanted, term.given).real / power) if power else 0.0
        alike = factor and relative(norm(term.given - factor * term.wanted), norm(term.given)) < 1e-9
        if alike and term.wanted.size > 1 and not any(abs(factor - x) < 1e-6 * abs(x) for x in found):
            found.append(factor)
    return found[:3]


def _left(
    recording: Recording,
    terms: Sequence[Term],
    direction: Direction,
    largest: float,
    alterations: Sequence[tuple[Any, Alter]],
) -> float:
    """Return the largest error of a replay's gradients; inf if PyTorch cannot compute it."""
    by = [term.by for term in terms]
    try:
        found = derivatives(recording, ROOT, by, direction, {"alterations": alterations})
    except Exception:  # user modules may raise anything on unexpected tensors
        return float("inf")
    pairs = zip(terms, found, strict=True)
    return max(dataclasses.replace(term, given=value).error(largest) for term, value in pairs)


def _alterations(steps: Collection[Step], factors: Sequence[float]) -> Iterator[tuple[str, str, Step, Alter]]:
    """Yield (switch, description, step, alteration): all cuts, then other derivatives, then scaled ones."""
    for step in reversed([*steps]):
        moving = [i for i, x in enumerate(step.args) if any(y.is_floating_point() for y in tensors_of(x))]
        for i in moving if len(moving) > 1 else ():
            text = f"{step.name}: no gradient through operand {i + 1}"
            yield "gradient cut", text, step, lambda s, i=i: s.run({(i, ""): detached(s.args[i])})
        yield "gradient cut", f"{step.name}: no gradient through its result", step, lambda s: detached(s.run())
    for step in steps:
        for name, function in ACTIVATIONS.items() if step.name in SLOPES else ():
            text = f"the value of {step.name}, the derivative of {name}"
            yield "derivative", text, step, lambda s, f=function: with_slope(s.run(), f(s.get(0, "input")))
    for step in steps:
        for i, factor in ((i, c) for i in range(min(len(step.args), 2)) for c in factors if len(step.args) > 1):
            if isinstance(x := step.args[i], torch.Tensor) and x.is_floating_point():
                text = f"{step.name}: the gradient of operand {i + 1} multiplied by {factor:.6g}"
                scaled = lambda s, i=i, c=factor: s.run({(i, ""): with_slope(s.args[i], c * s.args[i])})  # noqa: E731
                yield "gradient scale", text, step, scaled
        for factor in factors if isinstance(step.output, torch.Tensor) else ():
            text = f"{step.name}: its gradient multiplied by {factor:.6g}"
            yield "gradient scale", text, step, lambda s, c=factor: with_slope(s.run(), c * s.run())
