"""Training in PyTorch, in float64, with everything of every step recorded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from parity.carry.convert import to_numpy
from parity.optimizer_state.state import parameter_names
from parity.precision.wide_torch import wide
from parity.recording.inputs import Apply
from parity.runs.torch_side import TorchSide
from parity.side_by_side.arithmetic import Arrays

TorchLoss = Callable[[Any, Any], torch.Tensor]
Clipping = Callable[[Sequence[torch.nn.Parameter]], Any]
Batch = tuple[Sequence[np.ndarray], np.ndarray | None]
"""Arrays that enter the model, in PyTorch's layout, and the target."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of the optimizer in PyTorch; arrays by PyTorch's names.

    Attributes:
        start, end: The parameters before and after it.
        losses, gradients: Those of every micro-batch.
        given: The accumulated gradient, before clipping.
        clipped: The gradient that the optimizer got.
        absent: Parameters without a gradient.
        rates: Learning rate of every parameter.
        average: The moving average after the step; None if there is none.
    """

    start: Arrays
    end: Arrays
    losses: tuple[float, ...]
    gradients: tuple[Arrays, ...]
    given: Arrays
    clipped: Arrays
    absent: frozenset[str]
    rates: Mapping[str, float]
    average: Arrays | None

    @property
    def change(self) -> Arrays:
        return {name: self.end[name] - self.start[name] for name in self.end}


class TorchLoop:
    """A copy of PyTorch's model in training; `parameters` are all of its parameters, each once, named as in `known`."""

    def __init__(
        self,
        side: TorchSide,
        apply: Apply,
        loss: TorchLoss,
        optimizer: Callable[[torch.nn.Module], torch.optim.Optimizer],
        known: Collection[str],
        *,
        scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
        clip: Clipping | None = None,
        reduction: str = "mean",
        ema: Callable[[torch.nn.Module], Any] | None = None,
        ema_at: str = "after",
    ) -> None:
        self.side, self.apply, self.loss, self.clip = side, apply, loss, clip
        self.reduction, self.ema_at = reduction, ema_at
        names = parameter_names(side.model, known)
        self.parameters = {names[id(p)]: p for p in side.model.parameters()}
        self.optimizer = optimizer(side.model)
        if not isinstance(self.optimizer, torch.optim.Optimizer):
            raise ValueError(
                f"torch_optimizer has to return a torch.optim.Optimizer, not {type(self.optimizer).__name__}"
            )
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        if not held & {id(p) for p in self.parameters.values()}:
            raise ValueError(
                "torch_optimizer has to make its optimizer of the model that it is given (a copy in float64), not of "
                "another one: write torch_optimizer=lambda model: torch.optim.AdamW(model.parameters())"
            )
        self.updated = {name for name, p in self.parameters.items() if id(p) in held and p.requires_grad}
        self.scheduler = None if scheduler is None else scheduler(self.optimizer)
        self.ema = None if ema is None else ema(side.model)
        self._last: Arrays | None = None

    def micro(self, batch: Batch) -> tuple[float, Arrays, frozenset[str]]:
        """Return loss and gradients of one micro-batch, and the parameters without a gradient."""
        self.side.model.zero_grad()
        inputs = self.side.inputs(batch[0])
        target = None if batch[1] is None else self.side.inputs([batch[1]])[0]
        with self.side.wide():
            loss = self.loss(self.apply(self.side.model, inputs), target)
            if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
                raise ValueError("PyTorch's loss has to return one number (a tensor with one element)")
            loss.backward()
        absent = frozenset(name for name, p in self.parameters.items() if p.grad is None)
        grads = {
            n: np.zeros(tuple(p.shape)) if p.grad is None else to_numpy(p.grad) for n, p in self.parameters.items()
        }
        return loss.item(), {name: g.copy() for name, g in grads.items()}, absent

    def step(self, batches: Sequence[Batch]) -> Step:
        """Run one step of the optimizer."""
        start = self._last or self.weights()
        found = [self.micro(batch) for batch in batches]
        given = found[0][1]
        if len(found) > 1:
            factor = 1 / len(found) if self.reduction == "mean" else 1.0
            given = {name: factor * np.sum([grads[name] for _, grads, _ in found], axis=0) for name in start}
        absent = frozenset.intersection(*(one for _, _, one in found))
        for name, p in self.parameters.items():
            p.grad = None if name in absent else torch.from_numpy(np.array(given[name])).to(p)
        clipped = given
        if self.clip is not None:
            self.clip([p for p in self.parameters.values() if p.grad is not None])
            clipped = {n: given[n] if p.grad is None else to_numpy(p.grad).copy() for n, p in self.parameters.items()}
        rates = self.rates()
        if self.ema_at == "before":
            self._average()
        with wide("float64"):
            self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        if self.ema_at == "after":
            self._average()
        losses, gradients = tuple(loss for loss, _, _ in found), tuple(grads for _, grads, _ in found)
        self._last = self.weights()
        return Step(start, self._last, losses, gradients, given, clipped, absent, rates, self._averaged())

    def rates(self) -> dict[str, float]:
        """Return the learning rate of every parameter of the optimizer, for the next step."""
        names = {id(p): name for name, p in self.parameters.items()}
        groups = self.optimizer.param_groups
        return {names[id(p)]: float(group["lr"]) for group in groups for p in group["params"] if id(p) in names}

    def advance_rates(self) -> None:
        """Step the scheduler without a step of the optimizer."""
        if self.scheduler is not None:
            for p in self.parameters.values():
                p.grad = None
            self.optimizer.step()  # changes nothing, and is what the scheduler expects before its own
            self.scheduler.step()

    def weights(self) -> Arrays:
        """Return a copy of all parameters."""
        return {name: to_numpy(p).copy() for name, p in self.parameters.items()}

    def set_weights(self, arrays: Arrays) -> None:
        self._last = None
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(torch.from_numpy(np.array(arrays[name])))

    def _average(self) -> None:
        if self.ema is not None:
            update = getattr(self.ema, "update_parameters", None) or self.ema.update
            with wide("float64"):
                update(self.side.model)

    def _averaged(self) -> Arrays | None:
        if self.ema is None:
            return None
        module = getattr(self.ema, "module", None)
        state = self.ema.state if module is None else module.state_dict()
        return {name: to_numpy(state[name]).copy() for name in self.parameters if name in state}
