"""Mistakes of an optimizer and of a moving average, each as a change of PyTorch's arithmetic."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from parity.side_by_side.arithmetic import Arrays, Clip, Options, Rule

LIMITS = (1.0, 0.1, 0.25, 0.5, 2.0, 5.0, 10.0, 0.01)
"""Usual limits of clipping."""

DECAYS = (0.0, 1e-4, 1e-2, 5e-4, 1e-3, 0.05, 0.1, 0.2, 0.3)
EPSILONS = (1e-8, 1e-7, 1e-6, 1e-10, 1e-15, 1e-5, 1e-3, 0.0)
BETAS = (0.9, 0.95, 0.98, 0.99, 0.999, 0.8, 0.5, 0.0)

Candidate = tuple[str, str, Rule]
"""Short name of the mistake, description, and PyTorch's rule with it."""


def candidates(rule: Rule, batches: int, limit: float | None) -> Iterator[Candidate]:
    """Yield every single change of PyTorch's rule.

    Args:
        batches: Number of micro-batches per step.
        limit: Limit at which PyTorch clips, if it does.
    """
    if batches > 1:
        for other in {"mean": ("sum", "last"), "sum": ("mean", "last")}[rule.reduction]:
            text = f"PyTorch takes the {rule.reduction} of the {batches} micro-batches' gradients, JAX " + (
                "only the last of them" if other == "last" else f"the {other}"
            )
            yield "gradient accumulation", text, dataclasses.replace(rule, reduction=other)
    yield from _clipping(rule, batches, limit)
    yield from _options(rule)
    if rule.skips:
        text = "parameters without a gradient do not change in PyTorch; JAX has a gradient of zero for them"
        yield "unused parameters", text, dataclasses.replace(rule, skips=False)


def _clipping(rule: Rule, batches: int, limit: float | None) -> Iterator[Candidate]:
    own = rule.clip

    def to(text: str, clip: Clip) -> Candidate:
        return "gradient clipping", f"PyTorch {_said(own)}, JAX {text}", dataclasses.replace(rule, clip=clip)

    if own.by != "none":
        yield to("does not clip", Clip())
    if own.by == "norm":
        text = f"PyTorch adds {own.eps:g} to the norm before it divides by it, JAX does not"
        yield "epsilon of clipping", text, dataclasses.replace(rule, clip=dataclasses.replace(own, eps=0.0))
    if batches > 1:
        text = "JAX clips the gradients of each micro-batch, PyTorch their accumulated gradient"
        for eps in (own.eps, 0.0):
            yield (
                "gradient clipping",
                text,
                dataclasses.replace(rule, clip=dataclasses.replace(own, eps=eps, per_batch=True)),
            )
    for bound in dict.fromkeys((limit, *LIMITS) if limit is not None else LIMITS):
        for by in ("norm", "value", "tensor"):
            for eps in (0.0, 1e-6) if by != "value" else (0.0,):
                clip = Clip(by, bound, eps)
                if (by, bound) != (own.by, own.limit):
                    yield to(_said(clip), clip)


def _said(clip: Clip) -> str:
    if clip.by == "none":
        return "does not clip"
    what = {"norm": "the norm of all gradients", "tensor": "the norm of each tensor's gradient", "value": "each value"}
    return f"clips {what[clip.by]} at {clip.limit:.6g}"


def _options(rule: Rule) -> Iterator[Candidate]:
    kinds = {options.kind for options in rule.options.values()}

    def to(name: str, text: str, **changes: Any) -> Candidate:
        """Change the options of all parameters; the weight decay only of those that have one."""
        return name, text, _changed(rule, lambda _, options: dataclasses.replace(options, **changes))

    first = next(iter(rule.options.values()))
    decaying = next((o for o in rule.options.values() if o.decay), None)
    if decaying is not None:
        yield from _decays(rule, decaying)
    else:
        for value in DECAYS[1:]:
            for decoupled, text in ((True, "beside the gradient (AdamW)"), (False, "in the gradient (L2)")):
                said = f"PyTorch has no weight decay, JAX {value:g} {text}"
                yield to("weight decay", said, decay=value, decoupled=decoupled)
    if kinds == {"adam"}:
        yield to("bias correction", "PyTorch corrects both moments' bias, JAX none", correct1=False, correct2=False)
        yield to("bias correction", "JAX does not correct the first moment's bias", correct1=False)
        yield to("bias correction", "JAX does not correct the second moment's bias", correct2=False)
        for ahead, text in ((1, "one step ahead"), (-1, "one step behind")):
            if ahead > 0:
                yield to("bias correction", f"JAX's bias correction counts {text} of PyTorch's", ahead=ahead)
        yield to("Nesterov momentum", "JAX has Nesterov's momentum in Adam (nadam)", nesterov=True)
        for name in ("b1", "b2"):
            for value in BETAS:
                said = f"{name} is {getattr(first, name):g} in PyTorch, {value:g} in JAX"
                if value != getattr(first, name):
                    yield to("betas", said, **{name: value})
        if first.amsgrad:
            yield to("amsgrad", "PyTorch keeps the maximum of the second moment (amsgrad), JAX does not", amsgrad=False)
        else:
            yield to("amsgrad", "JAX keeps the maximum of the second moment as PyTorch's amsgrad", amsgrad=True)
        said = "JAX takes amsgrad's maximum after the bias correction" + (
            ", PyTorch before it" if first.amsgrad else ""
        )
        yield to("amsgrad", said, amsgrad_corrected=True)
    if kinds <= {"adam", "rmsprop", "adagrad"}:
        yield from _epsilons(to, first)
    if kinds <= {"rmsprop", "adagrad"}:
        for value in (1.0, 0.1, 0.0, 0.9, 1e-3):
            said = f"the second moment starts at {first.start:g} in PyTorch, {value:g} in JAX"
            if value != first.start:
                yield to("first second moment", said, start=value)
    if kinds == {"rmsprop"}:
        said = "PyTorch subtracts the squared mean (centered), JAX does not"
        said = said if first.centered else "JAX subtracts the squared mean (centered), PyTorch does not"
        yield to("centered", said, centered=not first.centered)
        yield to("bias correction", "JAX corrects the second moment's bias, PyTorch's RMSprop does not", ahead=1)
        for value in BETAS:
            if value != first.b2:
                yield to("betas", f"alpha is {first.b2:g} in PyTorch, the decay {value:g} in JAX", b2=value)
    if kinds <= {"sgd", "rmsprop"}:
        yield from _momenta(to, first)


def _decays(rule: Rule, own: Options) -> Iterator[Candidate]:
    def to(name: str, text: str, **changes: Any) -> Candidate:
        return name, text, _changed(rule, lambda _, o: dataclasses.replace(o, **changes) if o.decay else o)

    kinds = ("in the gradient (L2)", "beside the gradient (decoupled)")
    text = f"the weight decay is {kinds[own.decoupled]} in PyTorch, {kinds[not own.decoupled]} in JAX"
    yield to("decoupled weight decay", text, decoupled=not own.decoupled)
    text = "PyTorch multiplies the weight decay by the learning rate, JAX does not"
    yield to("weight decay times learning rate", text, decoupled=True, decay_by_lr=False)
    for value in DECAYS:
        if value != own.decay:
            yield to("weight decay", f"it is {own.decay:g} in PyTorch, {value:g} in JAX", decay=value)
            text = f"it is {own.decay:g} {kinds[own.decoupled]} in PyTorch, {value:g} {kinds[not own.decoupled]} in JAX"
            yield to("decoupled weight decay", text, decay=value, decoupled=not own.decoupled)


def _epsilons(to: Callable[..., Candidate], own: Options) -> Iterator[Candidate]:
    yield to("epsilon", "PyTorch adds eps outside the root, JAX inside it", eps_at="inside")
    if own.kind == "adam":
        yield to("epsilon", "JAX adds eps before it corrects the bias, PyTorch after it", eps_at="uncorrected")
    yield to("epsilon", "JAX adds eps^2 inside the root, PyTorch eps outside", eps_at="inside", eps=own.eps**2)
    for value in EPSILONS:
        if value != own.eps:
            yield to("epsilon", f"eps is {own.eps:g} in PyTorch, {value:g} in JAX", eps=value)
            text = f"eps is {own.eps:g} outside the root in PyTorch, {value:g} inside it in JAX"
            yield to("epsilon", text, eps=value, eps_at="inside")


def _momenta(to: Callable[..., Candidate], own: Options) -> Iterator[Candidate]:
    name = "momentum"
    if own.momentum:
        text = "PyTorch multiplies the learning rate into the step, JAX into the momentum"
        yield to(name, text, trace_lr=True)
        text = "JAX has Nesterov's momentum, PyTorch has not"
        text = "PyTorch has Nesterov's momentum, JAX has not" if own.nesterov else text
        yield to("Nesterov momentum", text, nesterov=not own.nesterov)
        text = f"JAX multiplies the gradient by 1 - momentum ({1 - own.momentum:g}), PyTorch does not"
        yield to("dampening", text, dampening=own.momentum, damp_first=True)
        if own.dampening:
            yield to("dampening", f"it is {own.dampening:g} in PyTorch, JAX has none", dampening=0.0)
            yield to("dampening", "JAX dampens the first gradient too, PyTorch does not", damp_first=True)
        else:
            for value in dict.fromkeys((own.momentum, 0.1, 0.5, 0.9)):
                yield to("dampening", f"PyTorch has none, it is {value:g} in JAX", dampening=value)
    for value in BETAS:
        if value != own.momentum:
            yield to(name, f"it is {own.momentum:g} in PyTorch, {value:g} in JAX", momentum=value)


def _changed(rule: Rule, change: Callable[[str, Options], Options]) -> Rule:
    return dataclasses.replace(rule, options={name: change(name, o) for name, o in rule.options.items()})


def masked(rule: Rule, name: str) -> Iterator[Rule]:
    """Yield the rule with the weight decay of one parameter switched off, or on as others have it."""
    options = rule.options[name]
    usual = {(o.decay, o.decoupled) for o in rule.options.values() if o.decay} if not options.decay else {(0.0, False)}
    for decay, decoupled in sorted(usual):
        other = dataclasses.replace(options, decay=decay, decoupled=decoupled)
        yield dataclasses.replace(rule, options={name: other})


# Moving averages


Series = Sequence[Arrays]


def averages(
    decay: float, first: Arrays, starts: Series, ends: Series, at: str, fitted: float | None
) -> Iterator[tuple[str, str, Series]]:
    """Yield (name, description, averages after each step) of the usual mistakes of a moving average.

    Args:
        decay: PyTorch's.
        first: The average before the first step.
        starts, ends: The parameters before and after each step.
        at: When PyTorch updates it: "before" or "after" the step.
        fitted: The decay that fits JAX's averages best.
    """
    own, other = (ends, starts) if at == "after" else (starts, ends)
    said = {"after": "after the step", "before": "before the step"}
    text = f"PyTorch updates the average {said[at]}, JAX {said['before' if at == 'after' else 'after']}"
    yield "moving average", text, _series(first, other, lambda t: decay)
    yield "moving average", "JAX does not update it", [first] * len(ends)
    text = "JAX's average is the parameters of the last update"
    yield "moving average", text, own
    yield (
        "moving average",
        "the decay and its complement are exchanged in JAX",
        _series(first, own, lambda t: 1 - decay),
    )
    zeros = {name: np.zeros_like(x) for name, x in first.items()}
    plain = _series(zeros, own, lambda t: decay)
    yield "moving average", "JAX's average starts at zero", plain
    unbiased = [{n: x / (1 - decay**t) for n, x in one.items()} for t, one in enumerate(plain, 1)]
    yield "moving average", "JAX's average starts at zero and its bias is corrected", unbiased
    for start in (0, 1):
        text = "JAX's decay starts small: min(decay, (1 + t) / (10 + t))"
        yield "moving average", text, _series(first, own, _growing(decay, start))
    text = "the first update is a copy in one framework only (AveragedModel copies the parameters at its first update)"
    yield "moving average", text, _series(own[0], own[1:], lambda t: decay, including=True)
    yield "moving average", text, _series(first, own, lambda t: decay)
    for value in dict.fromkeys((0.9, 0.99, 0.995, 0.999, 0.9999, 0.5, *([] if fitted is None else [fitted]))):
        if value != decay:
            text = f"the decay is {decay:g} in PyTorch, {value:.6g} in JAX"
            yield "moving average", text, _series(first, own, _constant(value))
            text += f"; PyTorch updates the average {said[at]}, JAX {said['before' if at == 'after' else 'after']}"
            yield "moving average", text, _series(first, other, _constant(value))


def _constant(decay: float) -> Callable[[int], float]:
    return lambda t: decay


def _growing(decay: float, start: int) -> Callable[[int], float]:
    return lambda t: min(decay, (t + start) / (9 + t + start))


def _series(first: Arrays, values: Series, decay: Callable[[int], float], including: bool = False) -> list[Arrays]:
    """Return the averages of `values` after each step from 1; `including`: the first one before them."""
    found = [first] if including else []
    average: Mapping[str, np.ndarray] = first
    for t, given in enumerate(values, 1):
        d = decay(t)
        average = {name: d * average[name] + (1 - d) * given[name] for name in first}
        found.append(dict(average))
    return found
