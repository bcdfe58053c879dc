"""Make every mistake of the catalogue in a PyTorch model, one at a time, and test whether `check` would detect it.

A port with a mistake computes the same as the PyTorch model with that mistake, so PyTorch alone is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch

from parity.measure.gates import Gates
from parity.power.margin import Whole
from parity.power.recordings import calls_of, forward_work
from parity.power.search import Search
from parity.recording.capture import Key
from parity.recording.inputs import Arguments
from parity.report.power_report import PowerReport
from parity.runs.losses import Loss
from parity.runs.torch_side import TorchSide

LEVELS = ("forward", "gradients", "train")

BUDGET = 1000.0
"""Default maximum cost of the search, in forward passes of the model."""

Progress = Callable[[str, float], None]


def power(
    torch_model: torch.nn.Module,
    inputs: Any,
    *,
    level: str = "gradients",
    gates: Gates | None = None,
    loss: Loss | None = None,
    budget: float = BUDGET,
    paired: Collection[Key] | None = None,
    progress: Progress | None = None,
) -> PowerReport:
    """Return which mistakes a `check` with these inputs and weights would detect, and which it would miss.

    Every mistake of the catalogue (`parity.causes`, and those of masks, ids, positions and training mode) is made in
    one module of a float64 copy of the model, in evaluation mode. It is detected if a gate of `check` fails: for the
    module's own arithmetic on correct inputs, or else for the whole model, its loss and its gradients. For undetected
    mistakes, other inputs and weights are tried, and the first that would reveal the mistake is named.

    Args:
        torch_model: Correct model, with the weights of the proof; it is not modified.
        inputs: Inputs, as for `check`.
        level: Level of the `check`: "forward", "gradients" or "train".
        gates, loss: Gates and loss of the `check`.
        budget: Maximum cost of the search, in forward passes of the model; mistakes beyond it are counted in
            `untried`. The result does not depend on the speed of the machine.
        paired: Calls of modules that have a partner in JAX; all by default. Other modules are part of the arithmetic
            of the enclosing module.
        progress: Callback that receives a description of the current work and the spent share of the budget.

    Raises:
        ValueError: If the level is unknown, the budget is not positive, or inputs are empty or not finite.
    """
    return search_of(
        torch_model, inputs, level=level, gates=gates, loss=loss, budget=budget, paired=paired, progress=progress
    ).run()


def search_of(
    torch_model: torch.nn.Module,
    inputs: Any,
    *,
    level: str = "gradients",
    gates: Gates | None = None,
    loss: Loss | None = None,
    budget: float = BUDGET,
    paired: Collection[Key] | None = None,
    progress: Progress | None = None,
) -> Search:
    """Return the search that `power` runs; its findings contain the mutations themselves, for use with `mutated`."""
    if level not in LEVELS:
        raise ValueError(f"level {level!r} is not one of {', '.join(LEVELS)}")
    if not budget > 0:
        raise ValueError(f"budget {budget!r}: give the number of forward passes that the search may cost, above 0")
    arguments = inputs if isinstance(inputs, Arguments) else Arguments.of(inputs)
    arrays, apply = arguments.arrays, arguments.apply
    side = TorchSide.of(torch_model, "float64")
    tensors = side.inputs(arrays)
    calls = calls_of(side.model, tensors, apply)
    chosen = [call for call in calls if paired is None or call.key in paired]
    names = {call.key[0] for call in chosen}
    whole = Whole(side.model, arrays, names, loss, gates or Gates(), level, apply)
    unit = forward_work(side.model, tensors, apply)
    return Search(whole, chosen, unit, budget, progress or (lambda line, share: None))
