"""Causes of errors in optimizer steps, learning rates and running statistics, from the arrays alone.

As with modules, each switch predicts the result that JAX would have; the one that predicts the actual result is the
cause.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from parity.measure.gates import norm, relative

GATE = 1e-10
"""Distance between two trained states, relative to the distance travelled, that counts as zero (float64)."""


State = Mapping[str, np.ndarray]
"""Parameters or gradients by name."""


@dataclasses.dataclass(frozen=True)
class AdamW:
    """AdamW as computed by `torch.optim.AdamW`, with options for the conventions of other libraries.

    Attributes:
        coupled: Add the decay to the gradient (Adam with L2) instead of the step.
        eps_inside: Add eps under the root of the second moment.
        corrected: Divide both moments by 1 - beta^t.
        decayed: Names of parameters with weight decay; None for all.
        decay_by_lr: Multiply the decay by the learning rate.
        clip: Maximum global norm of the gradients; clip_eps is added to the norm, as in PyTorch.
        ema: Decay of the moving average; None for no average.
    """

    lr: float = 1e-3
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 1e-2
    coupled: bool = False
    eps_inside: bool = False
    corrected: bool = True
    decayed: frozenset[str] | None = None
    decay_by_lr: bool = True
    nesterov: bool = False
    clip: float | None = None
    clip_eps: float = 1e-6
    ema: float | None = None

    def run(
        self, params: State, gradients: Sequence[State], factors: Sequence[float] | None = None
    ) -> dict[str, np.ndarray]:
        """Return the parameters (or their moving averages, if `ema` is set) after one step per set of gradients.

        The learning rate of step i is multiplied by `factors[i]`.
        """
        p = {name: x.astype(np.float64) for name, x in params.items()}
        m = {name: np.zeros_like(x) for name, x in p.items()}
        v = {name: np.zeros_like(x) for name, x in p.items()}
        average = dict(p)
        for t, given in enumerate(gradients, 1):
            scale, lr = self._clip_scale(given), self.lr * (1.0 if factors is None else factors[t - 1])
            for name in p:
                p[name], m[name], v[name] = self._step(t, name, p[name], m[name], v[name], given[name] * scale, lr)
            if self.ema is not None:
                average = {name: self.ema * average[name] + (1 - self.ema) * p[name] for name in p}
        return p if self.ema is None else average

    def _clip_scale(self, gradients: State) -> float:
        if self.clip is None:
            return 1.0
        return min(1.0, self.clip / (norm(np.concatenate([g.ravel() for g in gradients.values()])) + self.clip_eps))

    def _step(
        self, t: int, name: str, p: np.ndarray, m: np.ndarray, v: np.ndarray, g: np.ndarray, lr: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        decay = self.weight_decay if self.decayed is None or name in self.decayed else 0.0
        g = g + decay * p if self.coupled else g
        m, v = self.b1 * m + (1 - self.b1) * g, self.b2 * v + (1 - self.b2) * g * g
        first, second = (1 - self.b1**t, 1 - self.b2**t) if self.corrected else (1.0, 1.0)
        top = (self.b1 * m / (1 - self.b1 ** (t + 1)) + (1 - self.b1) * g / first) if self.nesterov else m / first
        bottom = np.sqrt(v / second + self.eps) if self.eps_inside else np.sqrt(v / second) + self.eps
        if not self.coupled:
            p = p - (lr if self.decay_by_lr else 1.0) * decay * p
        return p - lr * top / bottom, m, v


def _variants(mine: AdamW, names: frozenset[str], vectors: frozenset[str]) -> Iterator[tuple[str, str, AdamW]]:
    """Yield all single switches as (switch, description, settings)."""

    def to(**changes: object) -> AdamW:
        return dataclasses.replace(mine, **changes)  # type: ignore[arg-type]

    for value in (1e-4, 1e-2, 0.0, 0.05, 5e-4):
        if value != mine.weight_decay:
            yield "weight decay", f"weight decay {mine.weight_decay:g} -> {value:g}", to(weight_decay=value)
    yield "coupled decay", "decay apart from the gradient -> added to it (L2)", to(coupled=not mine.coupled)
    yield "decay by lr", "decay multiplied by the learning rate -> not", to(decay_by_lr=not mine.decay_by_lr)
    yield "optimiser eps", "eps beside the root -> under it", to(eps_inside=not mine.eps_inside)
    for value in (1e-6, 1e-7, 1e-8, 1e-10, 1e-12, 0.0):
        yield "optimiser eps", f"eps {mine.eps:g} -> {value:g}", to(eps=value)
    for value in (0.9, 0.95, 0.98, 0.99, 0.999):
        yield "betas", f"b1 {mine.b1:g} -> {value:g}", to(b1=value)
        yield "betas", f"b2 {mine.b2:g} -> {value:g}", to(b2=value)
    yield "bias correction", "moments corrected -> not", to(corrected=not mine.corrected)
    yield "nesterov", "plain -> Nesterov momentum", to(nesterov=not mine.nesterov)
    masks = {"all parameters": None, "none but the matrices": names - vectors, "the vectors alone": vectors}
    for text, mask in masks.items():
        yield "decay mask", f"decays {text}", to(decayed=mask)
    for limit in (None, 0.1, 0.5, 1.0, 5.0):
        yield "gradient clipping", f"clips to {limit}", to(clip=limit)
    yield "gradient clipping", f"norm + {mine.clip_eps:g} -> norm + 0", to(clip_eps=0.0)
    for ema in (None, 0.9, 0.99, 0.999, 0.9999, 0.99996):
        yield "ema decay", f"moving average with {mine.ema} -> {ema}", to(ema=ema)
    if mine.ema is not None:
        yield "ema decay", "decay and its complement exchanged", to(ema=1 - mine.ema)
    for factor in (2.0, 0.5, 10.0, 0.1):
        yield "learning rate", f"learning rate times {factor:g}", to(lr=factor * mine.lr)


def travelled(given: State, wanted: State, start: State) -> float:
    """Return the distance between two trained states relative to the distance travelled from `start`."""
    apart, path = (
        norm(np.concatenate([(a[name] - b[name]).ravel() for name in start]))
        for a, b in ((given, wanted), (wanted, start))
    )
    return relative(apart, path)


@dataclasses.dataclass(frozen=True)
class TrainingCause:
    """A switch of the training, and the error without and with it, in the metric of the function that returns it."""

    switch: str
    description: str
    error_before: float
    error_after: float


def optimizer_cause(
    settings: AdamW,
    start: State,
    gradients: Sequence[State],
    given: State,
    factors: Sequence[float] | None = None,
) -> TrainingCause | None:
    """Return the single switch of the optimizer that leads from `start` to JAX's state `given`, or None."""
    before = travelled(given, settings.run(start, gradients, factors), start)
    names, vectors = frozenset(start), frozenset(name for name, x in start.items() if x.ndim <= 1)
    for switch, text, other in _variants(settings, names, vectors):
        after = travelled(given, other.run(start, gradients, factors), start)
        if after <= GATE < before:
            return TrainingCause(switch, text, before, after)
    return None


def series_cause(wanted: Sequence[float], given: Sequence[float], gate: float = 1e-13) -> TrainingCause | None:
    """Return the change that turns one series of learning rates (one per epoch or step) into the other, or None."""
    r, y = np.asarray(wanted, np.float64), np.asarray(given, np.float64)
    before = relative(norm(y - r), norm(r))
    for switch, text, prediction, part in _series(r, y):
        after = relative(norm(y[part] - prediction), norm(prediction))
        if after <= gate < before and len(prediction) >= len(r) // 2:
            return TrainingCause(switch, text, before, after)
    return None


def _series(r: np.ndarray, y: np.ndarray) -> Iterator[tuple[str, str, np.ndarray, slice]]:
    n = len(r)
    for shift in range(1, n // 2):
        yield "schedule shift", f"JAX is {shift} behind", r[:-shift], slice(shift, n)
        yield "schedule shift", f"JAX is {shift} ahead", r[shift:], slice(0, n - shift)
    factor = float(np.vdot(r, y) / norm(r) ** 2)
    yield "learning rate", f"times {factor:.6g}", factor * r, slice(0, n)
    offset = float((y - r).mean())
    yield "learning rate", f"plus {offset:.6g}", r + offset, slice(0, n)
    for stretch in range(2, 9):
        yield "schedule stretch", f"{stretch} times as slow", np.repeat(r, stretch)[:n], slice(0, n)
        fast = r[::stretch]
        yield "schedule stretch", f"{stretch} times as fast", fast, slice(0, len(fast))


def statistics_cause(
    old: np.ndarray, wanted: np.ndarray, given: np.ndarray, momentum: float, count: int, gate: float = 1e-13
) -> TrainingCause | None:
    """Return the cause of different running statistics after one training step, or None.

    Args:
        old: Statistic before the step.
        wanted, given: PyTorch's and JAX's statistic after it.
        momentum: PyTorch's momentum, the weight of the new value.
        count: Number of values per channel in the batch.
    """
    batch = (wanted - (1 - momentum) * old) / momentum
    before = relative(norm(given - wanted), norm(wanted))
    for switch, text, prediction in _statistics(old, wanted, given, batch, momentum, count):
        after = relative(norm(given - prediction), norm(prediction))
        if after <= gate < before:
            return TrainingCause(switch, text, before, after)
    return None


MOMENTA = (0.001, 0.003, 0.01, 0.03, 0.05, 0.1, 0.2, 0.5)
"""Common weights of the new value; their complements are also tried."""


def _statistics(
    old: np.ndarray, wanted: np.ndarray, given: np.ndarray, batch: np.ndarray, momentum: float, count: int
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield predictions of JAX's statistic after one step as (switch, description, prediction)."""
    momentum_switch, variance_switch, both = (
        "batch norm momentum",
        "running variance",
        "batch norm momentum and running variance",
    )
    swapped = "momentum as weight of the new value -> of the old"
    yield momentum_switch, swapped, (1 - momentum) * batch + momentum * old
    variances = [("unbiased (n - 1) -> biased (n)", (count - 1) / count)]
    variances += [("biased (n) -> unbiased (n - 1)", count / (count - 1))] if count > 1 else []
    for text, factor in variances:
        yield variance_switch, f"variance of the batch {text}", (1 - momentum) * old + momentum * factor * batch
    yield "running statistics", "updated -> not updated", old
    yield "running statistics", "moving average -> the batch's own", batch
    yield "running statistics", "updated once -> twice", (1 - momentum) * wanted + momentum * batch
    for text, factor in (("", 1.0), *variances):
        for weight in _weights(old, factor * batch, given, momentum):
            described = f"weight of the new value {momentum:g} -> {weight:.6g}"
            described += f"; variance of the batch {text}" if text else ""
            yield both if text else momentum_switch, described, old + weight * (factor * batch - old)


def _weights(old: np.ndarray, batch: np.ndarray, given: np.ndarray, momentum: float) -> list[float]:
    """Return candidate weights of the new value: the common ones and the best fit.

    A single element can be fitted exactly by some weight, so no fit is made for it.
    """
    usual = [weight for m in (momentum, *MOMENTA) for weight in (m, 1 - m)]
    step = batch - old
    if given.size < 2 or not norm(step):
        return usual
    return [*usual, float(np.vdot(step, given - old) / norm(step) ** 2)]
