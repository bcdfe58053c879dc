"""Switches for gates, mixtures of experts, soft caps and embeddings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from parity.causes.registry import Around, switches
from parity.causes.replay import Step
from parity.causes.switches.values import ACTIVATIONS
from parity.causes.variant import Variant, family, given, orders, replaced, result

ACTIVE = ("gelu", "relu", "silu", "sigmoid", "tanh", "mish", "softplus", "elu", "relu6", "hardswish")


@switches("mul")
def gated(step: Step, around: Around) -> Iterator[Variant]:
    """act(gate) * up: gate and up exchanged."""
    for i in (0, 1):
        active, other = step.args[i], step.args[1 - i]
        if not isinstance(active, torch.Tensor) or not isinstance(other, torch.Tensor):
            continue
        source = around.source(active, step)
        if source is not None and source.name in ACTIVE and other.shape == active.shape:
            gate = source.get(0, "input")
            text = f"{source.name}(gate) * up -> {source.name}(up) * gate"
            yield Variant("gate and up", text, lambda s, f=source, g=gate, u=other: f.run({(0, "input"): u}) * g)


@switches("glu")
def halves(step: Step, around: Around) -> Iterator[Variant]:
    """`torch.nn.functional.glu`: halves exchanged, another activation on the gate."""
    dim = step.get(1, "dim", -1)
    for name, function in {"sigmoid": torch.sigmoid, **ACTIVATIONS}.items():
        if name != "sigmoid":
            yield replaced("activation", f"gate by sigmoid -> {name}", lambda x, f=function: _glu(x, dim, f, 0))
    yield replaced("gate and up", "gate in the second half -> in the first", lambda x: _glu(x, dim, torch.sigmoid, 1))


def _glu(x: torch.Tensor, dim: int, function: Any, gate_first: int) -> torch.Tensor:
    parts = x.chunk(2, dim)
    return parts[gate_first] * function(parts[1 - gate_first])


@switches("mul")
def soft_cap(step: Step, around: Around) -> Iterator[Variant]:
    """c * tanh(x / c): left out, or with another c."""
    for i in (0, 1):
        x, c = step.args[i], step.args[1 - i]
        if not isinstance(x, torch.Tensor) or not isinstance(c, int | float):
            continue
        source = around.source(x, step)
        if source is None or source.name != "tanh":
            continue
        inside = source.get(0, "input")
        before = around.source(inside, source)
        whole = before.args[0] if before is not None and before.name in ("div", "true_divide") else c * inside
        yield Variant("soft cap", f"{c:g} * tanh(x / {c:g}) -> x", lambda s, w=whole: w.clone())
        text = f"the cap {c:g} -> {{value}}"
        yield family("soft cap", text, 2.0 * c, lambda s, n, w=whole: n * torch.tanh(w / n))


@switches("softmax")
def chosen_experts(step: Step, around: Around) -> Iterator[Variant]:
    """Softmax of the top-k logits: softmax of all logits before the top-k."""
    x = step.get(0, "input")
    for other in around.steps[: around.index(step)]:
        if other.name == "topk" and other.output[0].shape == x.shape and torch.equal(other.output[0], x):
            logits = other.get(0, "input")
            text = "softmax of the chosen -> softmax of all, of which the chosen are taken"
            yield Variant(
                "order of softmax and top-k", text, lambda s, a=logits, x=x: (x - a.logsumexp(-1, keepdim=True)).exp()
            )


@switches("topk")
def largest(step: Step, around: Around) -> Iterator[Variant]:
    """Top-k: values normalized to sum to one; the smallest instead of the largest."""
    text = "the chosen as they are -> made to sum to one"
    yield Variant("renormalisation", text, _to_one)
    yield given("top-k", "the largest -> the smallest", (3, "largest"), False)


def _to_one(step: Step) -> Any:
    values, indices = step.run()
    return torch.return_types.topk((values / values.sum(-1, keepdim=True), indices))


@switches("sort", "argsort", "flip", "cumsum", "cumprod")
def direction(step: Step, around: Around) -> Iterator[Variant]:
    """sort, flip, cumsum, ...: reversed direction; cumsum without the entry itself."""
    dim = step.get(1, "dim", -1)
    if step.name in ("cumsum", "cumprod") and isinstance(dim, int):
        text = f"{step.name} from the first -> from the last"
        yield Variant("direction", text, lambda s: s.run({(0, "input"): s.get(0, "input").flip(dim)}).flip(dim))
        if step.name == "cumsum":
            text = "cumsum with the entry itself -> without it"
            yield Variant("shifted by one", text, lambda s: s.run() - s.get(0, "input"))
    if step.name == "flip":
        for axis in range(step.output.ndim):
            yield replaced("direction", f"flip -> of axis {axis}", lambda x, a=axis: x.flip(a))
        yield replaced("direction", "flip -> none", lambda x: x)


@switches("pixel_shuffle", "pixel_unshuffle", "channel_shuffle")
def shuffled(step: Step, around: Around) -> Iterator[Variant]:
    """Pixel and channel shuffle: order of the channels or of the groups."""
    n = step.args[1]
    if step.name == "channel_shuffle":
        channels = step.output.shape[1]
        text = f"{n} groups -> {channels // n}"
        yield replaced("channel order", text, lambda x: torch.channel_shuffle(x, channels // n))
        yield replaced("channel order", "channels shuffled -> not", lambda x: x)
        return
    names = ("channel", "row", "column")
    for order in orders(3):
        text = f"channels as (channel, row, column) -> ({', '.join(names[i] for i in order)})"
        if step.name == "pixel_shuffle":
            yield Variant("channel order", text, lambda s, o=order: _pixels(s, n, o))
        else:
            yield result("channel order", text, lambda y, o=order: _regrouped(y, n, o))


def _pixels(step: Step, n: int, order: tuple[int, ...]) -> torch.Tensor:
    """Pixel shuffle of channels stored in `order`."""
    x = step.args[0]
    shape = (x.shape[1] // n**2, n, n)
    apart = x.unflatten(1, tuple(shape[i] for i in order))
    back = [1 + order.index(i) for i in range(3)]
    return torch.pixel_shuffle(apart.permute(0, *back, 4, 5).flatten(1, 3), n)


def _regrouped(y: torch.Tensor, n: int, order: tuple[int, ...]) -> torch.Tensor:
    return y.unflatten(1, (-1, n, n)).permute(0, *(1 + i for i in order), 4, 5).flatten(1, 3)


@switches("repeat_interleave", "repeat", "tile")
def repeated(step: Step, around: Around) -> Iterator[Variant]:
    """Key and value heads for grouped queries: each head repeated, or the whole sequence tiled."""
    x, count = step.args[0], step.get(1, "repeats")
    if step.name == "repeat_interleave":
        dim = step.get(2, "dim")
        if isinstance(count, int) and dim is not None:
            text = "heads 0 0 1 1 (repeat_interleave) -> 0 1 0 1 (tile)"
            yield replaced("kv heads", text, lambda x: torch.cat([x] * count, dim))
        return
    counts = step.args[1:] if isinstance(count, int) else count
    many = [axis for axis, n in enumerate(counts) if n > 1]
    if len(many) == 1 and len(counts) == x.ndim:
        text = "heads 0 1 0 1 (tile) -> 0 0 1 1 (repeat_interleave)"
        yield replaced("kv heads", text, lambda x: x.repeat_interleave(counts[many[0]], many[0]))


def expanded(step: Step) -> Iterator[Variant]:
    """As `repeated`, for heads that are repeated by expand and reshape."""
    x = step.args[0]
    axes = [axis for axis in range(1, x.ndim) if x.stride(axis) == 0 and x.shape[axis] > 1]
    if len(axes) == 1 and step.output.ndim == x.ndim - 1:
        for other in (axes[0] - 1, axes[0] + 1):
            if 0 < other < x.ndim:
                text = "heads 0 0 1 1 (expand) -> 0 1 0 1 (tile)"
                a, b, shape = axes[0], other, step.output.shape
                yield replaced("kv heads", text, lambda x, a=a, b=b, n=shape: x.transpose(a, b).reshape(n))


@switches("embedding")
def embedded(step: Step, around: Around) -> Iterator[Variant]:
    """Embedding: another row, or scaled by the square root of the width."""
    root = math.sqrt(step.output.shape[-1])
    yield result("scale", f"embedding -> multiplied by sqrt(width), {root:.4g}", lambda y: y * root)
    index, weight = step.get(0, "input"), step.get(1, "weight")
    if isinstance(index, torch.Tensor) and index.is_floating_point():
        index, weight = weight, index
    for n in (1, -1, 2, -2):
        text = f"index -> index {n:+d}"
        yield Variant(
            "position offset",
            text,
            lambda s, n=n, i=index, w=weight: torch.nn.functional.embedding((i + n).clamp(0, len(w) - 1), w),
        )
