"""Mistakes that only training mode reveals: dropout, and the running statistics of BatchNorm."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch

RATES = ("p", "drop_prob", "rate")
"""Attribute names of the dropout rate in PyTorch, timm and this repository."""

Change = Callable[[torch.nn.Module], None]


@dataclasses.dataclass(frozen=True)
class TrainingMistake:
    """A mistake in one module that has no effect in evaluation mode.

    `change` makes it in a copy of the module. If None, `check` compares the distribution of the random draws exactly at
    `level="train"`.
    """

    module: str
    type: str
    switch: str
    text: str
    change: Change | None = None


def training_mistakes(model: torch.nn.Module) -> Iterator[TrainingMistake]:
    """Yield the mistakes of every module of `model`."""
    for path, module in model.named_modules():
        kind = type(module).__name__
        rate = rate_of(module)
        for text in _rates(rate) if rate else ():
            yield TrainingMistake(path, kind, "dropout rate", text)
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            for text, change in _statistics(module):
                yield TrainingMistake(path, kind, "running statistics", text, change)


def rate_of(module: torch.nn.Module) -> float:
    """Return the dropout rate of a dropout module; 0 for any other module."""
    named = "drop" in type(module).__name__.lower() or isinstance(module, torch.nn.modules.dropout._DropoutNd)
    rates = [getattr(module, name, None) for name in RATES] if named else []
    return next((float(rate) for rate in rates if isinstance(rate, int | float)), 0.0)


def _rates(rate: float) -> Iterator[str]:
    yield f"rate {rate:g} -> 0 (forgotten)"
    yield f"rate {rate:g} -> {rate / 2:g}"
    if rate != 0.5:
        yield f"rate {rate:g} -> {1 - rate:g} (the share that is kept)"


def _statistics(module: Any) -> Iterator[tuple[str, Change]]:
    momentum = module.momentum
    if momentum is None:
        return
    if momentum != 0.5:
        yield f"momentum {momentum:g} -> {1 - momentum:g}", lambda m: setattr(m, "momentum", 1 - momentum)
    yield "running statistics not updated", lambda m: setattr(m, "momentum", 0.0)
    yield "running variance unbiased -> biased", _biased


def _biased(module: Any) -> None:
    """Make a BatchNorm update its running variance with the biased variance of the batch."""
    from parity.power.mutate import wrap

    def around(self: Any, own: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        before = self.running_var.clone()
        output = own(self, *args, **kwargs)
        if self.training:
            count = args[0].numel() // args[0].shape[1]
            kept = (1 - self.momentum) * before
            # A new tensor: the backward pass may need the old one.
            self.running_var = (kept + (self.running_var - kept) * (count - 1) / count).detach()
        return output

    wrap(module, around)
