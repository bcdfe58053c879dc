"""Generic mistakes, which apply to any step and to the results of inner modules."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from parity.causes.registry import Named
from parity.causes.replay import Step, tensors_of
from parity.causes.switches.layouts import split_as
from parity.causes.variant import Variant, changed, choices, family, orders

SUMS = ("add", "sub", "iadd", "rsub", "radd")
SHIFTS = {1: "shifted by one", 2: "shifted by two"}
FORMATS = (torch.float32, torch.bfloat16, torch.float16)


def generic(step: Step, pool: Sequence[Named], own: Sequence[torch.Tensor] = ()) -> Iterator[Variant]:
    """Yield the step left out, applied twice, applied to another tensor of `pool`, shifted, transposed, or rounded.

    Rounding is to a narrower format. `own` are the module's parameters and buffers: adding one of them is not a
    residual connection.
    """
    if isinstance(step.output, torch.Tensor):
        yield from _left_out(step, own)
        yield from _operands(step, pool)
        yield from _rounded(step)


def _left_out(step: Step, own: Sequence[torch.Tensor]) -> Iterator[Variant]:
    residual = step.name in SUMS and not any(_owned(x, own) for x in step.args[:2])
    switch = "residual" if residual else _kind_left_out(step)
    operands = [i for i, x in enumerate(step.args[:2]) if _like(x, step.output)]
    for i in operands:
        text = f"{step.name} left out" + (f", its operand {i + 1} taken" if len(step.args) > 1 else "")
        yield Variant(switch, text, lambda s, i=i: s.args[i])
    if step.output.dtype == torch.bool:
        yield Variant("mask", f"{step.name} negated", lambda s: ~s.run())
    elif 0 in operands:
        text = f"{step.name} applied twice"
        yield Variant("step doubled", text, lambda s: Step(s.place, s.function, (s.run(), *s.args[1:]), s.kwargs).run())
    if step.name in SUMS and len(step.args) > 1 and isinstance(step.args[1], torch.Tensor):
        yield changed("residual", f"{step.name}: operand 2 with the other sign", (1, "other"), torch.neg)
        for i in (0, 1):
            yield changed("residual", f"{step.name}: operand {i + 1} counted twice", (i, ""), lambda x: 2 * x)
            text = f"{step.name}: operand {i + 1} multiplied by {{value}}"
            yield family("residual", text, 1.5, lambda s, c, i=i: s.run({(i, ""): c * s.args[i]}))


def _kind_left_out(step: Step) -> str:
    """Return the switch for leaving out this step: renormalisation, bias, or the general "step left out"."""
    if step.name in ("div", "true_divide") and len(step.args) > 1 and isinstance(step.args[1], torch.Tensor):
        x, divisor = step.args
        sums = isinstance(x, torch.Tensor) and divisor.shape == (*x.shape[:-1], 1)
        if sums and torch.allclose(divisor, x.sum(-1, keepdim=True), rtol=1e-6):
            return "renormalisation"
    if step.name in SUMS and len(step.args) > 1 and getattr(step.args[1], "ndim", 2) == 1:
        return "bias"
    return "step left out"


def _owned(x: Any, own: Sequence[torch.Tensor]) -> bool:
    """Return whether x is one of the module's own tensors, or a part of one."""
    if not isinstance(x, torch.Tensor):
        return False
    return isinstance(x, torch.nn.Parameter) or any(
        x.data_ptr() == y.data_ptr() or (x.shape == y.shape and torch.equal(x, y)) for y in own
    )


def _like(x: Any, y: torch.Tensor) -> bool:
    return isinstance(x, torch.Tensor) and x.shape == y.shape


def _operands(step: Step, pool: Sequence[Named]) -> Iterator[Variant]:
    switch = "residual" if step.name in SUMS else "wrong tensor"
    for i, operand in enumerate(step.args[:3]):
        if not isinstance(operand, torch.Tensor) or operand.ndim == 0:
            continue
        of = f"{step.name}: operand {i + 1}"
        for name, other in pool:
            if other.shape == operand.shape:
                yield changed(switch, f"{of} -> {name}", (i, ""), lambda _, other=other: other.clone())
        for axis in range(operand.ndim) if operand.shape.numel() > 1 else ():
            for shift in (1, -1, 2, -2):
                text = f"{of} shifted by {shift} along axis {axis}"
                yield changed(SHIFTS[abs(shift)], text, (i, ""), lambda x, n=shift, a=axis: x.roll(n, a))
            yield changed("axis flipped", f"{of} flipped along axis {axis}", (i, ""), lambda x, a=axis: x.flip(a))
        if operand.ndim > 1 and operand.shape[-1] == operand.shape[-2]:
            yield changed("axis order", f"{of} transposed", (i, ""), lambda x: x.transpose(-1, -2))


def _rounded(step: Step) -> Iterator[Variant]:
    """Yield the step with operand or result rounded to a narrower format, or computed in it; all else in float64."""
    if not step.output.is_floating_point():
        return
    for dtype in FORMATS:
        name = str(dtype).removeprefix("torch.")
        round_ = functools.partial(rounded_to, dtype)
        yield rounding(name, f"result of {step.name} rounded to {name}", lambda s, r=round_: r(s.run()))
        for i, operand in enumerate(step.args[:2]):
            if isinstance(operand, torch.Tensor) and operand.is_floating_point():
                text = f"operand {i + 1} of {step.name} rounded to {name}"
                yield rounding(name, text, lambda s, r=round_, i=i: s.run({(i, ""): r(s.args[i])}))
        if len(tensors_of(step.args)) == 1 or step.name in WHOLE:
            yield rounding(name, f"{step.name} in {name}", lambda s, d=dtype: computed_in(d, s))


WHOLE = ("linear", "layer_norm", "rms_norm", "group_norm", "batch_norm", "matmul", "bmm", "mul", "div", "add", "conv2d")
"""Functions also tried with all their tensors in a narrower format."""


def rounding(name: str, text: str, alter: Any) -> Variant:
    return Variant(f"{name} leak", text, alter, rounding="elements")


def computed_in(dtype: torch.dtype, step: Step) -> Any:
    """Run the step with its floating-point tensors cast to `dtype`; return the result in float64."""
    args, kwargs = pytree.tree_map(
        lambda x: x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x, (step.args, step.kwargs)
    )
    return pytree.tree_map(
        lambda x: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x,
        step.function(*args, **kwargs),
    )


def rounded_to(dtype: torch.dtype, tree: Any) -> Any:
    """Round the floating-point tensors of a tree to `dtype`, keeping their own dtype."""
    return pytree.tree_map(
        lambda x: x.to(dtype).to(x.dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x, tree
    )


def part_orders(tree: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield an inner module's output with its three or two equal parts (a fused q, k, v) read in another order.

    Yields:
        (switch, description, tree).
    """
    x = _tokens(tree)
    if x is None:
        return
    for count, switch in ((3, "q/k/v order"), (2, "parts order")):
        for order in choices(count) if x.shape[-1] % count == 0 else ():
            parts = x.chunk(count, -1)
            text = f"its {count} equal parts read in the order {order}"
            yield switch, text, _instead(tree, torch.cat([parts[i] for i in order], -1))


def head_orders(tree: Any, sizes: Sequence[int]) -> Iterator[tuple[str, str, Any]]:
    """As `part_orders`, with the channels (parts, heads, width) in another memory order.

    `sizes` are the candidates for the number of heads.
    """
    x = _tokens(tree)
    if x is None:
        return
    width, names = x.shape[-1], ("part", "head", "width")
    for parts, heads in ((p, h) for p in (3, 1) for h in sizes if h > 1 and width % (p * h) == 0 and width > p * h):
        shape = (parts, heads, width // (parts * heads))
        for order in orders(3):
            text = f"its channels {shape} (part, head, width) laid out as ({', '.join(names[i] for i in order)})"
            read = split_as(x, [*x.shape[:-1], *shape], x.ndim - 1, order).reshape(x.shape)
            if not torch.equal(read, x):
                yield "head order", text, _instead(tree, read)


def _tokens(tree: Any) -> torch.Tensor | None:
    """Return the only tensor of a tree if it is floating-point and has channels, else None."""
    tensors = tensors_of(tree)
    fits = len(tensors) == 1 and tensors[0].ndim > 1 and tensors[0].is_floating_point()
    return tensors[0] if fits else None


def _instead(tree: Any, tensor: torch.Tensor) -> Any:
    """Return the tree with its only tensor replaced by `tensor`."""
    return pytree.tree_map(lambda leaf: tensor if isinstance(leaf, torch.Tensor) else leaf, tree)
