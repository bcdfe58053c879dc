"""Switches for pooling over windows and tokens, and for resizing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from parity.causes.registry import Around, switches
from parity.causes.replay import Step
from parity.causes.switches.resize import resize
from parity.causes.switches.values import along_axis
from parity.causes.variant import Variant, given, replaced, result

REDUCTIONS: dict[str, Callable[..., torch.Tensor]] = {"mean": torch.mean, "sum": torch.sum, "amax": torch.amax}


@switches("mean", "sum", "amax")
def reduction(step: Step, around: Around) -> Iterator[Variant]:
    """mean, sum, amax: another reduction, without the first entry, over another axis."""
    dim, keep = step.get(1, "dim"), step.get(2, "keepdim", False)
    for name, function in REDUCTIONS.items():
        if name != step.name and dim is not None:
            yield replaced("pooling", f"{step.name} -> {name}", lambda x, f=function: f(x, dim, keepdim=keep))
    if isinstance(dim, int):
        text = f"{step.name} without the first entry"
        same = REDUCTIONS[step.name]
        yield replaced("pooling", text, lambda x: same(x.narrow(dim, 1, x.shape[dim] - 1), dim, keepdim=keep))
    yield from along_axis(step, around)


@switches("mean", "sum", "amax", "div", "true_divide", "getitem", "select", "squeeze", "gather", "index_select", "bmm")
def tokens(step: Step, around: Around) -> Iterator[Variant]:
    """Result (B, D) pooled from tokens (B, T, D): mean with or without padding, first, last, maximum."""
    y = step.output
    if not isinstance(y, torch.Tensor) or y.ndim < 1 or not y.is_floating_point():
        return
    masks = [(name, x) for name, x in around.before(step) if _is_mask(x)]
    for name, x in around.before(step):
        if x.ndim != y.ndim + 1 or not x.is_floating_point() or (x.shape[0], *x.shape[2:]) != tuple(y.shape):
            continue
        for text, function in POOLED.items():
            switch = "token taken" if text.endswith("entry") else "pooling"
            yield Variant(switch, f"-> {text} of {name}", lambda s, x=x, f=function: f(x))
        for of, mask in masks:
            for text, keep in (("nonzero", mask != 0), ("zero", mask == 0)):
                if keep.shape == x.shape[:2]:
                    where = f"-> mean of {name} where {of} is {text}"
                    yield Variant("pooling", where, lambda s, x=x, k=keep: _mean_where(x, k))
                    yield Variant(
                        "token taken",
                        f"-> last of {name} where {of} is {text}",
                        lambda s, x=x, k=keep: _last_where(x, k),
                    )
    divisor: Any = step.get(1, "other")
    if step.name in ("div", "true_divide") and isinstance(divisor, torch.Tensor):
        for n in around.sizes:
            yield given("pooling", f"divided by all {n} entries in place of those counted", (1, "other"), n)


def _is_mask(x: torch.Tensor) -> bool:
    return x.ndim == 2 and x.numel() > 1 and (x.dtype == torch.bool or bool(((x == 0) | (x == 1)).all()))


def _mean_where(x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    k = keep.to(x.dtype)[..., None] if x.ndim == 3 else keep.to(x.dtype)
    return (x * k).sum(1) / k.sum(1)


def _last_where(x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    last = (keep * torch.arange(1, keep.shape[1] + 1)).argmax(1)
    return x[torch.arange(len(x)), last]


POOLED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean over all entries": lambda x: x.mean(1),
    "first entry": lambda x: x[:, 0],
    "last entry": lambda x: x[:, -1],
    "second entry": lambda x: x[:, 1],
    "mean of all but the first": lambda x: x[:, 1:].mean(1),
    "largest of all entries": lambda x: x.amax(1),
    "sum": lambda x: x.sum(1),
}


@switches("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d")
def windows(step: Step, around: Around) -> Iterator[Variant]:
    """Window pooling: max or average, padding counted or not, ceil or floor, padding as in SAME."""
    rank = int(step.name[-2])
    maximum, average = getattr(F, f"max_pool{rank}d"), getattr(F, f"avg_pool{rank}d")
    kernel = step.get(1, "kernel_size")
    stride, padding = step.get(2, "stride") or kernel, step.get(3, "padding", 0)
    ceil = step.get(5, "ceil_mode", False) if step.name.startswith("max") else step.get(4, "ceil_mode", False)
    counted = step.get(5, "count_include_pad", True) if step.name.startswith("avg") else True

    def pool(text: str, switch: str = "pooling", **options: Any) -> Variant:
        chosen = {"stride": stride, "padding": padding, "ceil_mode": ceil} | options
        largest = chosen.pop("largest", step.name.startswith("max"))
        if not largest:
            chosen.setdefault("count_include_pad", counted)
        return replaced(switch, text, lambda x: (maximum if largest else average)(x, kernel, **chosen))

    yield pool("-> max", largest=True) if step.name.startswith("avg") else pool("-> average", largest=False)
    if step.name.startswith("max"):
        yield pool("-> average, padding not counted", largest=False, count_include_pad=False)
    elif padding:
        text = "padding counted in the average -> not counted" if counted else "padding not counted -> counted"
        yield pool(text, count_include_pad=not counted)
    yield pool(f"ceil_mode {ceil} -> {not ceil}", ceil_mode=not ceil)
    fill = -math.inf if step.name.startswith("max") else 0.0
    for text, pads in same_pads(step.get(0, "input"), kernel, stride, 1, rank).items():
        chosen = maximum if step.name.startswith("max") else average
        yield replaced(
            "padding",
            f"padding {padding} on both sides -> {text}",
            lambda x, p=pads, c=chosen: c(F.pad(x, p, value=fill), kernel, stride),
        )
        if fill == 0.0:
            yield replaced(
                "padding",
                f"padding {padding} on both sides -> {text}, not counted",
                lambda x, p=pads: (
                    average(F.pad(x, p), kernel, stride) / average(F.pad(torch.ones_like(x), p), kernel, stride)
                ),
            )


def same_pads(x: torch.Tensor, kernel: Any, stride: Any, dilation: Any, rank: int) -> dict[str, list[int]]:
    """Return JAX's SAME and SAME_LOWER padding as arguments of `F.pad`."""
    pads: list[tuple[int, int]] = []
    for axis in range(rank):
        k, s, d = (v if isinstance(v, int) else v[axis % len(v)] for v in (kernel, stride, dilation))
        n = x.shape[axis - rank]
        total = max((math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n, 0)
        pads.append((total // 2, total - total // 2))
    upper = [n for pair in reversed(pads) for n in pair]
    lower = [n for pair in reversed(pads) for n in reversed(pair)]
    return {f"SAME, {pads[0][0]} before, {pads[0][1]} after": upper, "SAME_LOWER": lower}


@switches("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d")
def adaptive(step: Step, around: Around) -> Iterator[Variant]:
    """Adaptive pooling: average, max or sum."""
    size, rank = tuple(step.output.shape[2:]), step.output.ndim - 2
    cells = math.prod(step.args[0].shape[2:]) // math.prod(size)
    if "avg" in step.name:
        largest = getattr(F, f"adaptive_max_pool{rank}d")
        yield replaced("pooling", "average -> max", lambda x: largest(x, size))
        yield result("pooling", "average -> sum", lambda y: y * cells)
    else:
        yield replaced("pooling", "max -> average", lambda x: F.adaptive_avg_pool2d(x, size))


@switches("interpolate", "upsample")
def interpolation(step: Step, around: Around) -> Iterator[Variant]:
    """Resizing: another mode, `align_corners`, other bicubic conventions, antialiasing."""
    mode, size = step.get(3, "mode", "nearest"), tuple(step.output.shape[2:])
    linear = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]
    for other, corners in _kernels(linear, len(size)):
        if (other, corners or False) != (mode, step.get(4, "align_corners") or False):
            text = f"{mode} -> {other}" + (", corners aligned" if corners else "")
            yield replaced(
                "resize", text, lambda x, m=other, c=corners: F.interpolate(x, size, mode=m, align_corners=c)
            )
    if len(size) == 2:
        for a, antialias, edge in itertools.product((-0.5, -0.75), (False, True), ("clamp", "renormalise")):
            text = f"{mode} -> bicubic, a = {a}, {'' if antialias else 'no '}antialias, edges {edge}"
            yield replaced("resize", text, lambda x, a=a, n=antialias, e=edge: resize(x, size, a, antialias=n, edge=e))
        yield replaced(
            "resize",
            f"{mode} -> bilinear, antialias",
            lambda x: F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False),
        )


def _kernels(linear: str, rank: int) -> Sequence[tuple[str, bool | None]]:
    found: list[tuple[str, bool | None]] = [(linear, False), (linear, True), ("nearest", None), ("nearest-exact", None)]
    return [*found, ("bicubic", False), ("bicubic", True)] if rank == 2 else found
