"""Switches for layouts: kernels, windows, axes, parts, tokens."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F

from parity.causes.registry import Around, switches
from parity.causes.replay import Step
from parity.causes.switches.mixtures import expanded
from parity.causes.switches.pooling import same_pads
from parity.causes.switches.values import biases
from parity.causes.variant import Argument, Variant, changed, choices, given, orders, picked, replaced, result

_KERNEL = (1, "weight")


@switches("conv1d", "conv2d", "conv3d")
def convolution(step: Step, around: Around) -> Iterator[Variant]:
    yield from biases(step)
    x, weight = step.get(0, "input"), step.get(*_KERNEL)
    spatial = tuple(range(2, weight.ndim))
    flips = dict.fromkeys([spatial, *((axis,) for axis in spatial)])
    for axes in flips:
        yield changed("kernel flipped", f"kernel flipped along axes {axes}", _KERNEL, lambda w, a=axes: w.flip(a))
    if len(spatial) == 2:
        text = "kernel's height and width exchanged"
        yield changed("kernel transposed", text, _KERNEL, lambda w: w.transpose(2, 3))
    if weight.shape[0] == weight.shape[1]:
        text = "kernel's channels in and out exchanged"
        yield changed("kernel transposed", text, _KERNEL, lambda w: w.transpose(0, 1))
        if len(spatial) == 2:
            text = "kernel's channels in and out, and height and width, exchanged"
            yield changed("kernel transposed", text, _KERNEL, lambda w: w.permute(1, 0, 3, 2))
    if x.shape[1] != weight.shape[1]:
        groups = x.shape[1] // weight.shape[1]
        for sizes in ((groups, -1), (-1, groups)):
            text = f"the output channels of the {groups} groups interleaved"
            yield result("groups", text, lambda y, n=sizes: _interleaved(y, 1, n))
            yield changed("groups", f"{text} in the kernel", _KERNEL, lambda w, n=sizes: _interleaved(w, 0, n))
    yield from _paddings(step, len(spatial), (4, "padding"))
    yield from _strides(step, len(spatial))


def _strides(step: Step, rank: int) -> Iterator[Variant]:
    """Yield padding as in JAX's SAME, other dilations, and shifted windows."""
    x, weight = step.get(0, "input"), step.get(*_KERNEL)
    stride, padding, dilation = step.get(3, "stride", 1), step.get(4, "padding", 0), step.get(5, "dilation", 1)
    for text, pads in same_pads(x, tuple(weight.shape[2:]), stride, dilation, rank).items():
        yield _padded(f"padding {padding} on both sides -> {text}", (4, "padding"), pads)
    for crop in (1, 2):
        text = f"windows begin {crop} later"
        pads = [n for _ in range(rank) for n in (-crop, crop)]
        yield replaced_input("stride offset", text, lambda x, p=pads: F.pad(x, p))
    for other in (1, 2, 3, 4):
        mine = [dilation] * rank if isinstance(dilation, int) else list(dilation)
        if mine != [other] * rank:
            sides = [other * (k - 1) // 2 for k in weight.shape[2:]]
            text = f"dilation {dilation} -> {other}"
            yield given("dilation", text, (5, "dilation"), other)
            for pad in (sides, [other] * rank):
                yield Variant(
                    "dilation",
                    f"{text}, padding {pad}",
                    lambda s, o=other, p=pad: s.run({(4, "padding"): tuple(p), (5, "dilation"): o}),
                )


def replaced_input(switch: str, text: str, change: Callable[..., torch.Tensor]) -> Variant:
    return changed(switch, text, (0, "input"), change)


@switches("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed(step: Step, around: Around) -> Iterator[Variant]:
    """Transposed convolution: kernel flipped, its channels exchanged, output cropped at another offset."""
    yield from biases(step)
    weight = step.get(*_KERNEL)
    spatial = tuple(range(2, weight.ndim))
    for axes in dict.fromkeys([spatial, *((axis,) for axis in spatial)]):
        yield changed("kernel flipped", f"kernel flipped along axes {axes}", _KERNEL, lambda w, a=axes: w.flip(a))
    if weight.shape[0] == weight.shape[1]:
        text = "kernel's channels in and out exchanged"
        yield changed("kernel transposed", text, _KERNEL, lambda w: w.transpose(0, 1))
        text += ", and flipped"
        yield changed("kernel transposed", text, _KERNEL, lambda w: w.transpose(0, 1).flip(spatial))
    for n in (1, -1):
        text = f"the result cut {n:+d} from where it is"
        yield Variant("padding", text, lambda s, n=n: _cut(s, n, len(spatial)))


def _cut(step: Step, by: int, rank: int) -> torch.Tensor:
    """Run the transposed convolution without padding, and crop it to its size, shifted by `by`."""
    padding = step.get(4, "padding", 0)
    sides = [padding] * rank if isinstance(padding, int) else list(padding)
    shape = step.run().shape
    y = F.pad(step.run({(4, "padding"): 0, (5, "output_padding"): 0}), [0, 2] * rank)
    for axis in range(rank):
        y = y.narrow(2 + axis, sides[axis] + by, shape[2 + axis])
    return y


def _interleaved(x: torch.Tensor, axis: int, sizes: tuple[int, int]) -> torch.Tensor:
    return x.unflatten(axis, sizes).transpose(axis, axis + 1).flatten(axis, axis + 1)


def _paddings(step: Step, rank: int, argument: Argument) -> Iterator[Variant]:
    padding = step.get(*argument, 0)
    if isinstance(padding, str):
        return
    sides = [padding] * rank if isinstance(padding, int) else list(padding) * (rank // len(padding))
    first = sides[0]
    for before, after in itertools.product(range(first + 3), repeat=2):
        if (before, after) != (first, first) and len(set(sides)) == 1:
            text = f"padding {first} on both sides -> {before} before, {after} after"
            yield _padded(text, argument, [before, after] * rank)
    for mode in ("reflect", "replicate", "circular"):
        around = [side for side in reversed(sides) for _ in (0, 1)]
        yield _padded(f"padding with zeros -> {mode}", argument, around, mode)


def _padded(text: str, argument: Argument, pads: list[int], mode: str = "constant") -> Variant:
    def alter(step: Step) -> torch.Tensor:
        return step.run({(0, "input"): F.pad(step.get(0, "input"), pads, mode=mode), argument: 0})

    return Variant("padding", text, alter)


@switches("unfold")
def unfold(step: Step, around: Around) -> Iterator[Variant]:
    """`torch.nn.functional.unfold`: order of the features and of the windows."""
    kernel = step.get(1, "kernel_size")
    if not isinstance(kernel, int | tuple | list):
        return  # Tensor.unfold
    kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
    names = ("channel", "kh", "kw")
    for order in orders(3):
        text = f"features (channel, kh, kw) -> ({', '.join(names[i] for i in order)})"
        yield result("unfold order", text, lambda y, o=order: _features(y, kh, kw, o))

    def by_column(s: Step) -> torch.Tensor:
        return _features(s.run({(0, "input"): s.get(0, "input").transpose(2, 3)}), kh, kw, (0, 2, 1))

    yield Variant("unfold order", "windows row by row -> column by column", by_column)
    yield from _paddings(step, 2, (3, "padding"))


def _features(y: torch.Tensor, kh: int, kw: int, order: Sequence[int]) -> torch.Tensor:
    return y.unflatten(1, (-1, kh, kw)).permute(0, *(1 + i for i in order), 4).flatten(1, 3)


@switches("cat", "concat", "concatenate", "stack")
def joined(step: Step, around: Around) -> Iterator[Variant]:
    """cat, stack: parts in another order."""
    for order in orders(len(step.get(0, "tensors"))):
        text = f"parts of {step.name} in the order {order}"
        yield changed("concat order", text, (0, "tensors"), lambda parts, o=order: list(picked(parts, o)))


@switches("chunk", "split", "unbind", "tensor_split")
def pieces(step: Step, around: Around) -> Iterator[Variant]:
    """chunk, split, unbind: pieces in another order."""
    for order in choices(len(step.output)):
        switch = "q/k/v order" if len(order) == 3 else "parts order"
        text = f"pieces of {step.name} in the order {order}"
        yield result(switch, text, lambda parts, o=order: picked(parts, o))


@switches("getitem", "select")
def item(step: Step, around: Around) -> Iterator[Variant]:
    """x[:, 0] and similar: another entry, or the mean of all."""
    index = step.get(1, "")
    index = index if isinstance(index, tuple) else (index,)
    if not all(type(i) in (int, slice) for i in index):
        return
    for axis, entry in enumerate(index):
        if isinstance(entry, slice):
            continue
        for other in {0, 1, -1} - {entry}:
            new = (*index[:axis], other, *index[axis + 1 :])
            text = f"entry {entry} of axis {axis} -> entry {other}"
            yield replaced("token taken", text, lambda x, n=new: x[n])
        rest, place = (*index[:axis], slice(None), *index[axis + 1 :]), sum(type(i) is slice for i in index[:axis])
        for first in (0, 1):
            text = f"entry {entry} of axis {axis} -> mean of all" + " but the first" * first
            yield replaced("pooling", text, lambda x, r=rest, p=place, f=first: _mean_from(x[r], p, f))


@switches("getitem")
def entries(step: Step, around: Around) -> Iterator[Variant]:
    """x[..., :n] and similar: the first or the last n entries."""
    x, index = step.args[0], step.get(1, "")
    index = index if isinstance(index, tuple) else (index,)
    plain = all(i is Ellipsis or (isinstance(i, slice) and i.step in (None, 1)) for i in index)
    if not plain or step.output.ndim != x.ndim or index.count(Ellipsis) > 1:
        return
    cut = [(axis, n) for axis, n in enumerate(step.output.shape) if 0 < n < x.shape[axis]]
    for axis, n in cut if len(cut) == 1 else ():
        for start, where in ((0, "first"), (x.shape[axis] - n, "last")):
            text = f"the {where} {n} entries of axis {axis}"
            yield replaced("token taken", text, lambda x, a=axis, s=start, n=n: x.narrow(a, s, n))


def _mean_from(x: torch.Tensor, axis: int, first: int) -> torch.Tensor:
    return x.narrow(axis, first, x.shape[axis] - first).mean(axis)


@switches("permute", "transpose", "movedim", "swapaxes")
def permuted(step: Step, around: Around) -> Iterator[Variant]:
    """permute, transpose: another order of axes that gives the same shape."""
    shape = tuple(step.args[0].shape)
    for order in itertools.permutations(range(len(shape))) if len(shape) <= 5 else ():
        if tuple(shape[i] for i in order) == tuple(step.output.shape):
            yield replaced("axis order", f"{step.name} -> permute{order}", lambda x, o=order: x.permute(o))


@switches("reshape", "view", "flatten", "unflatten")
def reshaped(step: Step, around: Around) -> Iterator[Variant]:
    """Reshapes that merge or split axes: another memory order of those axes."""
    yield from expanded(step)
    before, after = list(step.args[0].shape), list(step.output.shape)
    head = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), 0)
    tail = 0
    while tail < min(len(before), len(after)) - head and before[-1 - tail] == after[-1 - tail]:
        tail += 1
    merged, split = range(head, len(before) - tail), after[head : len(after) - tail]
    if 2 <= len(merged) <= 4:
        for order in itertools.permutations(merged):
            axes = [*range(head), *order, *range(len(before) - tail, len(before))]
            text = f"{step.name} merges axes {tuple(merged)} in the order {order}"
            yield replaced("axis order", text, lambda x, a=axes: x.permute(a).reshape(after))
    if 2 <= len(split) <= 4:
        for order in itertools.permutations(range(len(split))):
            text = f"{step.name} splits into {tuple(split)} laid out as {tuple(split[i] for i in order)}"
            yield replaced("axis order", text, lambda x, o=order: split_as(x, after, head, o))


def split_as(x: torch.Tensor, shape: Sequence[int], head: int, order: Sequence[int]) -> torch.Tensor:
    """Reshape x to `shape`, as if its axes from `head` on were stored in `order`."""
    middle, rest = shape[head : head + len(order)], shape[head + len(order) :]
    other = x.reshape(*shape[:head], *(middle[i] for i in order), *rest)
    back = [head + list(order).index(i) for i in range(len(order))]
    return other.permute(*range(head), *back, *range(head + len(order), len(shape)))


@switches("roll")
def rolled(step: Step, around: Around) -> Iterator[Variant]:
    shifts = step.get(1, "shifts")
    back = tuple(-n for n in shifts) if isinstance(shifts, tuple | list) else -shifts
    yield given("roll", f"roll by {shifts} -> {back}", (1, "shifts"), back)
