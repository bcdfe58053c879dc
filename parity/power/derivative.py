"""The derivative of one call's own arithmetic, with a mistake and without, as in `parity.backward`.

Where a mistake leaves every value of the forward pass as it is, the same gradients arrive at the call from behind, so
its own derivative tells whether any gradient of the model changes: a few products instead of the whole model.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from parity.causes.replay import Recording, tensors_of
from parity.power.mutate import mutated, wrap
from parity.power.mutations import Mutation

GATE = 1e-12
ZERO_BY_STRUCTURE = 1e-10

Derivative = list[torch.Tensor]


def same_derivative(recording: Recording, mutation: Mutation, path: str) -> bool:
    """Whether the mistake leaves the derivative of the call's arithmetic as it is, in one random direction."""
    right, wrong = _derivative(recording, None, path), _derivative(recording, mutation, path)
    if len(right) != len(wrong):
        return False
    largest = max((float(x.norm()) for x in right), default=0.0)
    return all(_close(a, b, largest) for a, b in zip(wrong, right, strict=True))


def _close(a: torch.Tensor, b: torch.Tensor, largest: float) -> bool:
    scale = float(b.norm())
    scale = scale if scale > ZERO_BY_STRUCTURE * largest else largest
    return float((a - b).norm()) <= GATE * scale


def _derivative(recording: Recording, mutation: Mutation | None, path: str) -> Derivative:
    """By every floating input, every result of an inner call, and every own parameter."""
    args, kwargs = _variables((recording.args, recording.kwargs))
    supply: dict[str, list[Any]] = {}
    for (name, _), tree in sorted(recording.inner.items(), key=lambda item: item[0]):
        supply.setdefault(name, []).append(_variables(tree))
    given: list[torch.Tensor] = []
    module = _stubbed(recording.module, {_within(path, name): trees for name, trees in supply.items()}, given)
    if mutation is not None:
        local = dataclasses.replace(mutation, module="", inner=_within(path, mutation.inner))
        module = mutated(module, local, [_within(path, name) for name in supply])
    with torch.enable_grad():
        output = module(*_used(args), **_used(kwargs))
        terms = [_projected(x, i) for i, x in enumerate([*tensors_of(output), *given]) if x.requires_grad]
    names = [param for _, param in sorted(module.named_parameters()) if param.requires_grad]
    by = [x for x in tensors_of((args, kwargs, list(supply.values()))) if x.requires_grad] + names
    if not terms or not by:
        return []
    found = torch.autograd.grad(torch.stack(terms).sum(), by, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(by, found, strict=True)]


def _within(path: str, name: str) -> str:
    return name.removeprefix(f"{path}.") if path else name


def _variables(tree: Any) -> Any:
    return pytree.tree_map(
        lambda x: x.detach().clone().requires_grad_(x.is_floating_point()) if isinstance(x, torch.Tensor) else x, tree
    )


def _used(tree: Any) -> Any:
    """Not the leaves themselves: a module may work in place."""
    return pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, tree)


def _projected(x: torch.Tensor, index: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(zlib.crc32(repr((index, tuple(x.shape))).encode()))
    direction = torch.randn(x.shape, generator=draw, dtype=torch.float64).to(x)
    return (x * direction).sum() / math.sqrt(max(x.numel(), 1))


def _stubbed(module: torch.nn.Module, supply: dict[str, list[Any]], given: list[torch.Tensor]) -> torch.nn.Module:
    """A copy whose inner modules note what they are given, and return what they returned."""
    changed = copy.deepcopy(module)
    modules = dict(changed.named_modules())
    for name, trees in supply.items():
        wrap(modules[name], _stub(list(trees), given))
    return changed


def _stub(trees: list[Any], given: list[torch.Tensor]) -> Callable[..., Any]:
    def around(module: torch.nn.Module, own: Callable[..., Any], args: Sequence[Any], kwargs: Any) -> Any:
        given.extend(x for x in tensors_of((args, kwargs)) if x.is_floating_point())
        return _used(trees.pop(0))

    return around
