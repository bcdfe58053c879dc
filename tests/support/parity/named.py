"""The cause that is named when JAX's version of a module returns something else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from parity.carry.random_weights import randomize
from parity.causes import name_causes
from parity.measure.gates import Row
from parity.pairing.match_calls import Pair
from parity.recording.capture import Call, Key
from parity.report.findings import Cause

Tensor = torch.Tensor
ROOT: Key = ("", 0)


class Function(torch.nn.Module):
    """A function of one tensor as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def pair(module: torch.nn.Module, key: Key = ROOT, axes: tuple[int, ...] | None = None) -> Pair:
    return Pair(key, key, module, (0,), (axes,), (axes,))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape))


def cause_of(module: torch.nn.Module, x: Tensor, wrong: Tensor) -> Cause | None:
    """The cause named when JAX's version of the module returns `wrong` for `x`."""
    calls = {ROOT: Call([x.numpy()], [wrong.detach().numpy()])}
    rows = [Row("", "output", "forced", "float64", 1.0, 1e-13)]
    causes = name_causes(module, (x,), [pair(module)], calls, rows)
    assert len(causes) <= 1
    return causes[0] if causes else None


def double(module: torch.nn.Module) -> torch.nn.Module:
    randomize(module.double())
    return module.eval()
