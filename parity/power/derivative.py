"""Derivative of one call's own arithmetic, with and without a mistake, as in `parity.proof.module_derivatives`.

If a mistake changes no value of the forward pass, the gradients with respect to the call's results are unchanged, so
the call's own derivative shows whether any gradient of the model may change, without running the whole model.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from parity.causes.replay import Recording, tensors_of
from parity.power.mutations import Mutation, found, replay

GATE = 1e-12
ZERO_BY_STRUCTURE = 1e-10


def same_derivative(recording: Recording, mutation: Mutation) -> bool:
    """Return whether the mistake leaves the derivative of the call's arithmetic unchanged, in one random direction."""
    args, kwargs = _variables((recording.args, recording.kwargs))
    inner = {key: _variables(tree) for key, tree in recording.inner.items()}
    call = Recording(recording.module, args, kwargs, inner, recording.modules, path=recording.path)
    right, steps = call.run(gradients=True)
    change = mutation.among(found(call, steps))
    if change is None:
        return False
    wrong = replay(call, change, gradients=True)
    own = [x for x in call.own().values() if x.requires_grad]
    by = [x for x in tensors_of((args, kwargs, inner)) if x.requires_grad] + own
    wanted, given = _derivative(right, by), _derivative(wrong, by)
    largest = max((float(x.norm()) for x in wanted), default=0.0)
    return all(_close(a, b, largest) for a, b in zip(given, wanted, strict=True))


def _close(a: torch.Tensor, b: torch.Tensor, largest: float) -> bool:
    scale = float(b.norm())
    scale = scale if scale > ZERO_BY_STRUCTURE * largest else largest
    return float((a - b).norm()) <= GATE * scale


def _derivative(sites: Mapping[Any, list[torch.Tensor]], by: list[torch.Tensor]) -> list[torch.Tensor]:
    """Differentiate the inputs of inner modules and the outputs, projected on fixed random directions."""
    terms = [_projected(x, repr((key, i))) for key, found in sites.items() for i, x in enumerate(found)]
    terms = [term for term in terms if term.requires_grad]
    if not terms or not by:
        return [torch.zeros_like(x) for x in by]
    gradients = torch.autograd.grad(torch.stack(terms).sum(), by, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(by, gradients, strict=True)]


def _projected(x: torch.Tensor, name: str) -> torch.Tensor:
    if not x.is_floating_point():
        return torch.zeros(())
    draw = torch.Generator().manual_seed(zlib.crc32(repr((name, tuple(x.shape))).encode()))
    direction = torch.randn(x.shape, generator=draw, dtype=torch.float64).to(x)
    return (x * direction).sum() / math.sqrt(max(x.numel(), 1))


def _variables(tree: Any) -> Any:
    return pytree.tree_map(
        lambda x: x.detach().clone().requires_grad_(x.is_floating_point()) if isinstance(x, torch.Tensor) else x, tree
    )
