"""Mistakes that only certain inputs reveal: masks, token ids, positions.

They complement the catalogue of `parity.causes`, which tries common mistakes to identify what JAX computed. These are
rarer, but often not exercised by the inputs: a mask without padding, a padding id that occurs in no row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from parity.causes.replay import Step
from parity.causes.variant import Argument, Variant, changed, given, replaced

MASKED = (-1e4, -1e9)
"""Common values of masked logits, besides -inf."""


def extra(step: Step) -> Iterator[Variant]:
    """Yield the mistakes of one step, selected by the name of its function."""
    for names, entry in EXTRAS.items():
        if step.name in names:
            yield from entry(step)


def _embedding(step: Step) -> Iterator[Variant]:
    ids, table = (0, "input"), (1, "weight")
    last = step.get(*table).shape[0] - 1
    for shift in (1, 2, -1):
        text = f"ids {'+' if shift > 0 else '-'} {abs(shift)}, within the table"
        yield changed("position off by one", text, ids, lambda x, n=shift: (x + n).clamp(0, last))
    yield changed("padding index", "the row of id 0 read as zeros", table, _without_first)
    if step.get(2, "padding_idx") is not None:
        text = "padding_idx forgotten: the padding's row gets a gradient"
        yield given("padding index gradient", text, (2, "padding_idx"), None)


def _without_first(table: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.zeros_like(table[:1]), table[1:]])


def _masked_fill(step: Step) -> Iterator[Variant]:
    yield replaced("attention mask", "without its mask", lambda x: x)
    yield from _masks(step, (1, "mask"))
    value = step.get(2, "value")
    if isinstance(value, int | float) and value < -1:
        for other in MASKED:
            if other != value:
                yield given("attention mask", f"masked by {value:g} -> {other:g}", (2, "value"), other)
        yield Variant("attention mask", "set to a value -> the value added", _added)


def _added(step: Step) -> torch.Tensor:
    x, mask, value = step.get(0, "input"), step.get(1, "mask"), step.get(2, "value")
    return x + torch.zeros_like(x).masked_fill(mask, max(value, torch.finfo(x.dtype).min / 4))


def _masks(step: Step, argument: Argument) -> Iterator[Variant]:
    """Yield mask inverted, transposed, or shifted by one along the last axis."""
    mask = step.get(*argument)
    if not isinstance(mask, torch.Tensor) or mask.ndim < 2 or mask.dtype != torch.bool:
        return
    yield changed("attention mask", "mask inverted", argument, torch.logical_not)
    if mask.shape[-1] == mask.shape[-2]:
        yield changed("attention mask", "mask transposed", argument, lambda m: m.transpose(-1, -2))
    elif mask.shape[-2] == 1 and step.output.shape[-1] == step.output.shape[-2]:
        yield changed("attention mask", "mask over the queries", argument, lambda m: m.transpose(-1, -2))
    for shift in (1, -1):
        text = f"mask off by one ({shift:+d})"
        yield changed("attention mask", text, argument, lambda m, n=shift: m.roll(n, -1))


def _where(step: Step) -> Iterator[Variant]:
    if len(step.args) > 2 and all(isinstance(x, torch.Tensor) for x in step.args[:1]):
        for i in (1, 2):
            if isinstance(step.args[i], torch.Tensor) and step.args[i].shape == step.output.shape:
                yield Variant("attention mask", f"where left out, its operand {i + 1} taken", lambda s, i=i: s.args[i])
        yield from _masks(step, (0, "condition"))


def _fused(step: Step) -> Iterator[Variant]:
    """Yield mistakes in the mask of PyTorch's fused attention."""
    mask = step.get(3, "attn_mask")
    if mask is None:
        return
    yield from _masks(step, (3, "attn_mask"))
    if mask.is_floating_point():
        yield changed("attention mask", "mask with the other sign", (3, "attn_mask"), torch.neg)
        if mask.shape[-1] == mask.shape[-2]:
            yield changed("attention mask", "mask transposed", (3, "attn_mask"), lambda m: m.transpose(-1, -2))


def _triangle(step: Step) -> Iterator[Variant]:
    diagonal = step.get(1, "diagonal", 0)
    for shift in (1, -1):
        text = f"diagonal {diagonal} -> {diagonal + shift}"
        yield given("attention mask", text, (1, "diagonal"), diagonal + shift)
    yield replaced("attention mask", f"without {step.name}", lambda x: x)


def _range(step: Step) -> Iterator[Variant]:
    for shift in (1, -1):
        yield Variant(
            "position off by one",
            f"{step.name} {'+' if shift > 0 else '-'} 1",
            lambda s, n=shift: (s.run() + n).clamp(min=0),
        )


def _slice(step: Step) -> Iterator[Variant]:
    """Yield x[:, :n] of a longer table shifted by one."""
    index, x = step.get(1, ""), step.args[0]
    index = index if isinstance(index, tuple) else (index,)
    if not all(isinstance(i, slice) for i in index):
        return
    for axis, part in enumerate(index):
        start, stop, stride = part.indices(x.shape[axis])
        if stride == 1 and stop < x.shape[axis]:
            new = (*index[:axis], slice(start + 1, stop + 1), *index[axis + 1 :])
            text = f"entries from {start} of axis {axis} -> from {start + 1}"
            yield replaced("position off by one", text, lambda x, n=new: x[n])


EXTRAS: dict[tuple[str, ...], Callable[[Step], Iterator[Variant]]] = {
    ("embedding",): _embedding,
    ("masked_fill",): _masked_fill,
    ("where",): _where,
    ("scaled_dot_product_attention",): _fused,
    ("tril", "triu"): _triangle,
    ("arange",): _range,
    ("getitem",): _slice,
}
"""Function names -> generator of their mistakes."""
