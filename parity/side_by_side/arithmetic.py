"""PyTorch's optimizers written out in numpy, with switches for the conventions of other libraries.

A rule with its switches as in PyTorch takes the steps of `torch.optim`; with one switch changed, those of a mistake.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from parity.measure.gates import norm
from parity.optimizer_state.state import kind_of

Arrays = dict[str, np.ndarray]

KINDS: Mapping[type[torch.optim.Optimizer], str] = {
    torch.optim.Adam: "adam",
    torch.optim.SGD: "sgd",
    torch.optim.RMSprop: "rmsprop",
    torch.optim.Adagrad: "adagrad",
}


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of one parameter. The first block are PyTorch's, the second are switches, off as PyTorch computes.

    Attributes:
        b1, b2: Decay of the first and second moment (`alpha` of RMSprop is `b2`).
        start: First value of the second moment (RMSprop, Adagrad).
        decay_by_lr: The decoupled decay is multiplied by the learning rate.
        eps_at: "outside" the root; "inside" it; "uncorrected": outside, but before the bias correction.
        correct1, correct2: Divide the first, second moment by 1 - beta^t.
        ahead: Steps by which the bias correction is ahead.
        damp_first: Dampening applies to the first gradient too.
        trace_lr: The learning rate is multiplied into the momentum, not into the step.
    """

    kind: str
    decay: float = 0.0
    decoupled: bool = False
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    centered: bool = False
    amsgrad: bool = False
    maximize: bool = False
    start: float = 0.0
    lr_decay: float = 0.0

    decay_by_lr: bool = True
    eps_at: str = "outside"
    correct1: bool = True
    correct2: bool = True
    ahead: int = 0
    damp_first: bool = False
    trace_lr: bool = False
    amsgrad_corrected: bool = False

    @classmethod
    def of(cls, kind: type[torch.optim.Optimizer], group: Mapping[str, Any]) -> Options | None:
        """Return PyTorch's options of a parameter group; None for an optimizer that is not written out here."""
        name = KINDS.get(kind_of(kind))
        if name is None:
            return None
        b1, b2 = group.get("betas", (0.0, group.get("alpha", 0.0)))
        return cls(
            name,
            float(group["weight_decay"]),
            bool(group.get("decoupled_weight_decay", False)),
            float(b1),
            float(b2),
            float(group.get("eps", 0.0)),
            float(group.get("momentum", 0.0)),
            float(group.get("dampening", 0.0)),
            bool(group.get("nesterov", False)),
            bool(group.get("centered", False)),
            bool(group.get("amsgrad", False)),
            bool(group.get("maximize", False)),
            float(group.get("initial_accumulator_value", 0.0)),
            float(group.get("lr_decay", 0.0)),
        )

    def step(self, p: np.ndarray, g: np.ndarray, lr: float, state: dict[str, Any]) -> np.ndarray:
        """Return the change of `p` by one step, and update `state` in place."""
        g = -g if self.maximize else g
        g = g + self.decay * p if self.decay and not self.decoupled else g
        state["t"] = t = state.get("t", 0) + 1
        direction = getattr(self, f"_{self.kind}")(g, t, lr, state)
        change = -direction if self.trace_lr and self.momentum else -lr * direction
        if self.decay and self.decoupled:
            # In PyTorch's order: the parameter decays first.
            change = change - (lr if self.decay_by_lr else 1.0) * self.decay * p
        return change

    def _adam(self, g: np.ndarray, t: int, lr: float, state: dict[str, Any]) -> np.ndarray:
        m = state["m"] = self.b1 * state.get("m", 0.0) + (1 - self.b1) * g
        v = state["v"] = self.b2 * state.get("v", 0.0) + (1 - self.b2) * g * g
        late = t + self.ahead
        first = 1 - self.b1**late if self.correct1 else 1.0
        second = 1 - self.b2**late if self.correct2 else 1.0
        if self.amsgrad_corrected:
            v = state["max"] = np.maximum(state.get("max", 0.0), v / second)
            second = 1.0
        elif self.amsgrad:
            v = state["max"] = np.maximum(state.get("max", 0.0), v)
        top = m / first
        if self.nesterov:
            top = self.b1 * m / (1 - self.b1 ** (late + 1)) + (1 - self.b1) * g / first
        if self.eps_at == "uncorrected":
            return top / ((np.sqrt(v) + self.eps) / math.sqrt(second))
        return top / self._root(v / second)

    def _root(self, v: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.sqrt(v + self.eps) if self.eps_at == "inside" else np.sqrt(v) + self.eps

    def _sgd(self, g: np.ndarray, t: int, lr: float, state: dict[str, Any]) -> np.ndarray:
        return self._with_momentum(g, t, lr, state)

    def _with_momentum(self, g: np.ndarray, t: int, lr: float, state: dict[str, Any]) -> np.ndarray:
        if not self.momentum:
            return g
        damp = 1.0 if t == 1 and not self.damp_first else 1 - self.dampening
        added = lr * g if self.trace_lr else g
        buffer = state["buffer"] = self.momentum * state.get("buffer", 0.0) + damp * added
        return added + self.momentum * buffer if self.nesterov else buffer

    def _rmsprop(self, g: np.ndarray, t: int, lr: float, state: dict[str, Any]) -> np.ndarray:
        v = state["v"] = self.b2 * state.get("v", self.start) + (1 - self.b2) * g * g
        if self.centered:
            mean = state["mean"] = self.b2 * state.get("mean", 0.0) + (1 - self.b2) * g
            v = v - mean * mean
        return self._with_momentum(g / self._root(v / self._second(t)), t, lr, state)

    def _second(self, t: int) -> float:
        """RMSprop has no bias correction in PyTorch: `ahead` switches it on."""
        return 1 - self.b2**t if self.ahead else 1.0

    def _adagrad(self, g: np.ndarray, t: int, lr: float, state: dict[str, Any]) -> np.ndarray:
        v = state["v"] = state.get("v", self.start) + g * g
        return g / self._root(v) / (1 + (t - 1) * self.lr_decay)


@dataclasses.dataclass(frozen=True)
class Clip:
    """Clipping of gradients: by "norm" of all, "tensor" (norm of each), "value", "none".

    `eps` is added to the norm; `per_batch`: before the gradients of micro-batches are accumulated.
    """

    by: str = "none"
    limit: float = math.inf
    eps: float = 1e-6
    per_batch: bool = False

    def __call__(self, gradients: Arrays) -> Arrays:
        """Return the clipped gradients."""
        if self.by == "value":
            return {name: np.clip(g, -self.limit, self.limit) for name, g in gradients.items()}
        if self.by == "tensor":
            return {name: g * self._factor(norm(g)) for name, g in gradients.items()}
        if self.by == "norm":
            factor = self._factor(math.hypot(*map(norm, gradients.values())))
            return {name: g * factor for name, g in gradients.items()}
        return gradients

    def _factor(self, size: float) -> float:
        return min(1.0, self.limit / (size + self.eps)) if size + self.eps > 0 else 1.0


@dataclasses.dataclass(frozen=True)
class Rule:
    """A whole optimizer: options per parameter, clipping, and how gradients of micro-batches become one.

    Attributes:
        options: Options by the name of the parameter.
        reduction: "mean" or "sum" of the micro-batches, or "last": only the last one counts.
        skips: Parameters without a gradient do not change (PyTorch), rather than having a gradient of zero.
        shift: Steps by which the learning rates are late.
        scale: Factor of all gradients.
    """

    options: Mapping[str, Options]
    clip: Clip = Clip()
    reduction: str = "mean"
    skips: bool = True
    shift: int = 0
    scale: float = 1.0

    def gradients(self, batches: Sequence[Arrays]) -> Arrays:
        """Return the gradients that the optimizer gets, given those of each micro-batch."""
        if self.clip.per_batch:
            batches = [self.clip(given) for given in batches]
        if self.reduction == "last":
            batches = batches[-1:]
        factor = self.scale / (len(batches) if self.reduction == "mean" else 1)
        whole = {name: factor * np.sum([given[name] for given in batches], axis=0) for name in batches[0]}
        return whole if self.clip.per_batch else self.clip(whole)

    def step(
        self, params: Arrays, batches: Sequence[Arrays], rates: Mapping[str, float], absent: frozenset[str], state: dict
    ) -> Arrays:
        """Return the change of every parameter by one step; `state` (of all parameters) is updated in place.

        `absent`: parameters that have no gradient.
        """
        found, given = {}, self.gradients(batches)
        for name, options in self.options.items():
            if name in absent and self.skips:
                found[name] = np.zeros_like(params[name])
            else:
                found[name] = options.step(params[name], given[name], rates[name], state.setdefault(name, {}))
        return found
