"""Makes every mistake of the catalogue in a PyTorch model, one at a time, and asks whether `check` would have seen it.

A port with a mistake computes what the PyTorch model with that mistake computes, so PyTorch alone is enough.
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
"""Forward passes of the model that the search may cost."""

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
    """What a `check` with these inputs and weights would have caught, and what it is blind to.

    Every mistake of the catalogue (`parity.causes`, and those of masks, ids, positions and training mode) is made in
    one module of a float64 copy of the model, in evaluation mode. It is seen if a gate of `check` fails: of the
    module's own arithmetic on correct inputs; else of the whole model, its loss and its gradients. For what is not
    seen, other inputs and weights are tried, and the first that would show it is named.

    Args:
        torch_model: the right model, with the weights of the proof; it stays as it is.
        inputs: as `check` takes them.
        level: that of the `check`: "forward", "gradients" or "train".
        gates, loss: those of the `check`.
        budget: what the search may cost, in forward passes of the model; what does not fit is counted in `untried`.
            The result depends on it and on nothing else: never on how fast the machine is.
        paired: the calls of modules that have a partner in JAX; by default all. The others' arithmetic is judged with
            that of the module around them.
        progress: called with what is being done and with the share of the budget that is spent.

    Raises:
        ValueError: an unknown level, a budget that is not positive, or inputs that are empty or not finite.
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
    """The search that `power` runs: its findings hold the mistakes themselves, to be made (see `mutated`)."""
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
