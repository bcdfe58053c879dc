"""Causes of wrong derivatives where the values are right: a cut gradient, weights tied in one framework only.

As with values, each step of PyTorch's own call is altered, and the alteration that reproduces JAX's derivatives is the
cause. The differentiated function is that of `parity.proof.module_derivatives`: all results of the call, projected on
fixed directions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from parity.causes.recordings import record
from parity.causes.replay import Alter, Recording, Step, tensors_of
from parity.causes.switches.values import ACTIVATIONS
from parity.measure.gates import norm, relative
from parity.recording.capture import Key
from parity.report.findings import Cause

STEPS = 200
"""Maximum number of steps of a module in which a cut is searched."""

Direction = Callable[[Key, str, int, tuple[int, ...]], np.ndarray]

By = tuple[str, Any, int]
"""Variable of a derivative: ("input", None, i), ("output", inner call, i) or ("parameter", name, 0)."""


@dataclasses.dataclass(frozen=True)
class Term:
    """One derivative of a module: PyTorch's (`wanted`) and JAX's (`given`), in PyTorch's layout."""

    by: By
    text: str
    wanted: np.ndarray
    given: np.ndarray

    def error(self, largest: float, value: np.ndarray | None = None) -> float:
        """Return the relative error of JAX's derivative; structural zeros are measured against `largest`."""
        reference = self.wanted if value is None else value
        scale = norm(reference)
        return relative(norm(self.given - reference), scale if scale > 1e-10 * largest else largest)


def gradient_cause(
    model: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    key: Key,
    paired: Sequence[Key],
    terms: Sequence[Term],
    direction: Direction,
    gate: float,
) -> tuple[str, str, float] | None:
    """Return (switch, description, remaining error) of the alteration that gives all of JAX's derivatives, or None."""
    try:
        recording = record(model, inputs, key, set(paired))
        if recording is None:
            return None
        recording.run()
        _, steps = recording.run()
    except Exception:  # user modules may raise anything when replayed
        return None
    if len(steps) > STEPS:
        return None
    require_gradients(recording)
    largest = max(norm(term.wanted) for term in terms)
    if _left(recording, key, terms, direction, largest, which="wanted") > gate:
        return None  # the replay does not reproduce PyTorch's derivatives: shared weights, several calls
    for switch, text, arguments in _alterations(recording, steps):
        left = _left(recording, key, terms, direction, largest, **arguments)
        if left <= gate:
            return switch, text, left
    return None


def require_gradients(recording: Recording) -> None:
    """Make the floating tensors that a call takes, and those that inner modules return, require a gradient."""
    for tensor in tensors_of((recording.args, recording.kwargs, list(recording.inner.values()))):
        if tensor.is_floating_point():
            tensor.requires_grad_()


def _left(
    recording: Recording,
    key: Key,
    terms: Sequence[Term],
    direction: Direction,
    largest: float,
    *,
    which: str = "given",
    **arguments: Any,
) -> float:
    """Return the largest error of JAX's (or PyTorch's own) derivatives relative to a replay; inf if it cannot run."""
    try:
        found = derivatives(recording, key, [term.by for term in terms], direction, arguments)
    except Exception:  # user modules may raise anything on unexpected tensors
        return math.inf
    errors = []
    for term, value in zip(terms, found, strict=True):
        compared = term if which == "given" else dataclasses.replace(term, given=term.wanted)
        errors.append(compared.error(largest, value))
    return max(errors, default=math.inf)


def derivatives(
    recording: Recording, key: Key, by: Sequence[By], direction: Direction, arguments: Mapping[str, Any]
) -> list[np.ndarray]:
    """Return the derivatives of a replay of the call, with these arguments of `Recording.run`."""
    sites, _ = recording.run(**arguments, gradients=True)
    terms = []
    for site, tensors in sites.items():
        for i, x in enumerate(tensors):
            if x.requires_grad:
                where, what = (key, "returned") if site is None else (site, "given")
                terms.append((x * torch.from_numpy(direction(where, what, i, tuple(x.shape))).to(x)).sum())
    leaves = [_leaf(recording, one) for one in by]
    found = torch.autograd.grad(torch.stack(terms).sum(), leaves, allow_unused=True)
    pairs = zip(found, leaves, strict=True)
    return [(torch.zeros_like(x) if gradient is None else gradient).numpy() for gradient, x in pairs]


def _leaf(recording: Recording, by: By) -> torch.Tensor:
    kind, which, i = by
    if kind == "parameter":
        return dict(recording.module.named_parameters())[recording.relative(which)]
    tree = recording.inner[which] if kind == "output" else (recording.args, recording.kwargs)
    return tensors_of(tree)[i]


def _alterations(recording: Recording, steps: Sequence[Step]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (switch, description, arguments of the replay): all cuts, then derivatives of other activations."""
    for key, tree in recording.inner.items():
        text = f"no gradient through the output of {recording.relative(key[0])}"
        yield "gradient cut", text, {"inner": {key: detached(tree)}}
    places = {(step.place, step.name): step for step in reversed(steps)}
    for step in reversed(places.values()):
        for i, operand in enumerate(step.args):
            if any(x.is_floating_point() for x in tensors_of(operand)):
                text = f"{step.name}: no gradient through operand {i + 1}{step.where}"
                yield "gradient cut", text, _at(step, lambda s, i=i: s.run({(i, ""): detached(s.args[i])}))
        text = f"{step.name}: no gradient through its result{step.where}"
        yield "gradient cut", text, _at(step, lambda s: detached(s.run()))
    for step in steps:
        for i, operand in enumerate(step.args):
            if step.occurrence and any(x.is_floating_point() for x in tensors_of(operand)):
                text = f"{step.name}, call {step.occurrence + 1}: no gradient through operand {i + 1}{step.where}"
                yield "gradient cut", text, _at(step, lambda s, i=i: s.run({(i, ""): detached(s.args[i])}), alone=True)
    for step in places.values():
        if step.name in ("gelu", "relu", "silu", "sigmoid", "tanh", "relu6", "hardswish", "hardsigmoid", "mish"):
            for name, function in ACTIVATIONS.items():
                text = f"the value of {step.name}, the derivative of {name}{step.where}"
                yield "derivative", text, _at(step, lambda s, f=function: with_slope(s.run(), f(s.get(0, "input"))))


def _at(step: Step, alter: Alter, *, alone: bool = False) -> dict[str, Any]:
    return {"alterations": (((step.place, step.name, step.occurrence if alone else None), alter),)}


def detached(tree: Any) -> Any:
    """Return the tree with no gradient through its tensors."""
    return pytree.tree_map(lambda x: x.detach() if isinstance(x, torch.Tensor) else x, tree)


def with_slope(value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return `value`, with the derivative of `other`."""
    return other + (value - other).detach()


# ---- from the derivatives alone ----


def embedding_cause(module: torch.nn.Module | None, term: Term, gate: float) -> tuple[str, str] | None:
    """Return (switch, description) of an option of `torch.nn.Embedding` that JAX's gradient ignores, or None."""
    if not isinstance(module, torch.nn.Embedding) or term.wanted.shape != term.given.shape:
        return None
    if module.scale_grad_by_freq:
        counts = _counts(term)
        if counts is not None and relative(norm(term.wanted * counts - term.given), norm(term.given)) <= gate:
            return "scale_grad_by_freq", "PyTorch divides each row's gradient by how often it is used, JAX does not"
    row = module.padding_idx
    if row is not None and not term.wanted[row].any() and term.given[row].any():
        rest = np.delete(term.given - term.wanted, row, axis=0)
        if relative(norm(rest), norm(term.wanted)) <= gate:
            return "padding_idx", f"PyTorch gives row {row} (padding_idx) no gradient, JAX does"
    return None


def _counts(term: Term) -> np.ndarray | None:
    """Return the factor between each row of JAX's and PyTorch's gradient; None unless all are whole numbers."""
    power = (term.wanted**2).sum(1, keepdims=True)
    ratio = (term.wanted * term.given).sum(1, keepdims=True) / np.where(power > 0, power, 1)
    whole = np.round(ratio)
    return whole if np.allclose(ratio, whole, rtol=1e-9) and (whole > 1).any() else None


def untied_cause(name: str, others: Mapping[str, np.ndarray], term: Term, gate: float) -> tuple[str, str] | None:
    """Return the cause if one tensor in PyTorch is several in JAX, each of which has a part of the gradient."""
    if not others:
        return None
    total = term.given + sum(others.values())
    if relative(norm(total - term.wanted), norm(term.wanted)) > gate:
        return None
    names = " and ".join((name, *others))
    return "untied weights", f"{names} are one tensor in PyTorch and separate in JAX, each with a part of the gradient"


def related_cause(terms: Sequence[Term], gate: float) -> tuple[str, str, float] | None:
    """Return (switch, description, remaining error) if all wrong derivatives of a module are zero or scaled."""
    by = ", ".join(term.text for term in terms)
    if not any(term.given.any() for term in terms):
        return "gradient cut", f"JAX's derivative by {by} is zero", 0.0
    if sum(term.wanted.size for term in terms) < 8 or not all(norm(term.wanted) > 0 for term in terms):
        return None
    factors = [float(np.vdot(term.wanted, term.given).real / norm(term.wanted) ** 2) for term in terms]
    after = max(relative(norm(t.given - factors[0] * t.wanted), norm(t.given)) for t in terms)
    if after <= gate:
        return "gradient scale", f"JAX's derivative by {by} is {factors[0]:.6g} times PyTorch's", after
    return None


def as_cause(module: str, found: tuple[str, str], before: float, after: float) -> Cause:
    return Cause(module or "the model", *found, before, after)
