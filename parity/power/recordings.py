"""Calls of a model, in groups for recording, and their cost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from parity.causes.replay import Step, tensors_of
from parity.recording.capture import Key, torch_hooks
from parity.recording.inputs import Apply, positional

ELEMENTS = 32 * 2**20
"""Approximate number of elements in recordings held at once; each group costs one more forward pass."""


@dataclasses.dataclass(frozen=True)
class Called:
    """One call of a module: its class, and the shapes of inputs and outputs."""

    key: Key
    type: str
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]

    @property
    def kind(self) -> tuple[Any, ...]:
        """Key that is equal for calls of equal blocks."""
        return self.type, self.inputs, self.outputs

    @property
    def elements(self) -> int:
        return sum(math.prod(shape) for shape in (*self.inputs, *self.outputs))


def calls_of(model: torch.nn.Module, inputs: Sequence[torch.Tensor], apply: Apply = positional) -> list[Called]:
    """Return every call of every module, in the order in which they return."""
    modules, given, found = dict(model.named_modules()), {}, []

    def before(key: Key, tensors: list[torch.Tensor]) -> None:
        given[key] = _shapes(tensors)

    def after(key: Key, tensors: list[torch.Tensor]) -> None:
        found.append(Called(key, type(modules[key[0]]).__name__, given.pop(key), _shapes(tensors)))

    with torch_hooks(model, before, after), torch.no_grad():
        apply(model, inputs)
    return found


def _shapes(tensors: Sequence[torch.Tensor]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(x.shape) for x in tensors)


def parts(calls: Sequence[Called], limit: int = ELEMENTS) -> Iterator[list[Called]]:
    """Yield consecutive groups of calls whose tensors have at most `limit` elements (or a single larger call)."""
    part: list[Called] = []
    size = 0
    for call in calls:
        if part and size + call.elements > limit:
            yield part
            part, size = [], 0
        part.append(call)
        size += call.elements
    if part:
        yield part


def work_of(steps: Sequence[Step]) -> int:
    """Return the cost of steps: multiplications of products, and elements written by other functions."""
    return sum(_work(step.name, step.args, step.kwargs, step.output) for step in steps)


def forward_work(model: torch.nn.Module, inputs: Sequence[torch.Tensor], apply: Apply = positional) -> int:
    """Return the cost of a whole forward pass, as in `work_of`; at least 1."""
    counter = _Counter()
    with torch.no_grad(), counter:
        apply(model, inputs)
    return max(counter.work, 1)


class _Counter(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.work = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.work += _work(getattr(func, "__name__", "").strip("_"), args, kwargs or {}, output)
        return output


def _work(name: str, args: Sequence[Any], kwargs: Any, output: Any) -> int:
    written = sum(x.numel() for x in tensors_of(output))
    tensors = tensors_of((args, kwargs))
    if name in ("linear", "matmul", "bmm", "mm", "rmatmul", "addmm", "baddbmm"):
        return written * (tensors[0].shape[-1] if tensors and tensors[0].ndim else 1)
    if name.startswith("conv") and len(tensors) > 1:
        return written * tensors[1][0].numel()
    if name in ("scaled_dot_product_attention", "multi_head_attention_forward"):
        width = tensors[0].shape[-1]
        return written * (2 * tensors[1].shape[-2] + (4 * width if name.startswith("multi") else 0))
    return written
