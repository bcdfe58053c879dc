"""Switches for computed values: activations, norms, projections, reductions, constants."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from parity.causes.registry import Around, switches
from parity.causes.replay import Step
from parity.causes.variant import Variant, changed, family, given, orders, replaced

EPSILONS = (1e-5, 1e-6, 1e-12, 1e-3, 1e-8, 1e-7, 1e-4, 1e-2, 1e-10, 0.0)

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "erf gelu": F.gelu,
    "tanh gelu": lambda x: F.gelu(x, approximate="tanh"),
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "hard sigmoid": F.hardsigmoid,
    "tanh": torch.tanh,
    "relu6": F.relu6,
    "hard swish": F.hardswish,
    "leaky relu 0.01": F.leaky_relu,
    "elu": F.elu,
    "softplus": F.softplus,
    "mish": F.mish,
}


@switches(
    "gelu",
    "relu",
    "silu",
    "sigmoid",
    "tanh",
    "relu6",
    "hardswish",
    "hardsigmoid",
    "leaky_relu",
    "elu",
    "softplus",
    "mish",
)
def activation(step: Step, around: Around) -> Iterator[Variant]:
    for name, function in ACTIVATIONS.items():
        switch = "gelu form" if step.name == "gelu" and "gelu" in name else "activation"
        yield replaced(switch, f"{step.name} -> {name}", function)
    yield from parameters_of(step)


_PARAMETERS = {
    "leaky_relu": ((1, "negative_slope"), 0.01, (0.01, 0.1, 0.2, 0.3, 0.05, 0.0)),
    "elu": ((1, "alpha"), 1.0, (1.0, 0.5, 2.0)),
    "softplus": ((1, "beta"), 1.0, (1.0, 2.0, 0.5, 10.0, 100.0)),
}


def parameters_of(step: Step) -> Iterator[Variant]:
    """Parameter of an activation (slope of a leaky ReLU, beta of softplus, ...): another common or fitted value."""
    if step.name not in _PARAMETERS:
        return
    argument, default, values = _PARAMETERS[step.name]
    mine = step.get(*argument, default)
    for value in values:
        if value != mine:
            yield given("activation", f"{argument[1]} {mine:g} -> {value:g}", argument, value)
    text = f"{argument[1]} {mine:g} -> {{value}}"
    yield family("activation", text, 2.0 * mine, lambda s, n: s.run({argument: n}))


@switches("linear")
def linear(step: Step, around: Around) -> Iterator[Variant]:
    yield from biases(step)
    rows, columns = step.get(1, "weight").shape
    if rows == columns:
        yield changed("kernel transposed", "kernel without its transpose", (1, "weight"), torch.t)
    for count in (3, 2):
        for order in orders(count) if rows % count == 0 else ():
            text = f"the {count} equal parts of its output in the order {order}"
            yield changed("parts order", text, (1, "weight"), lambda w, n=count, o=order: _rows(w, n, o))


def _rows(weight: torch.Tensor, count: int, order: tuple[int, ...]) -> torch.Tensor:
    parts = weight.chunk(count)
    return torch.cat([parts[i] for i in order])


def biases(step: Step) -> Iterator[Variant]:
    if step.get(2, "bias") is not None:
        yield given("bias", "without its bias", (2, "bias"), None)
        yield changed("bias", "bias added twice", (2, "bias"), lambda bias: 2 * bias)


_NORM_ARGUMENTS = {
    "layer_norm": ((2, "weight"), (3, "bias"), (4, "eps")),
    "group_norm": ((2, "weight"), (3, "bias"), (4, "eps")),
    "batch_norm": ((3, "weight"), (4, "bias"), (7, "eps")),
    "instance_norm": ((3, "weight"), (4, "bias"), (7, "eps")),
    "rms_norm": ((2, "weight"), None, (3, "eps")),
}


@switches("layer_norm", "group_norm", "batch_norm", "instance_norm", "rms_norm")
def norm(step: Step, around: Around) -> Iterator[Variant]:
    """Normalization layers: epsilon, scale, bias, statistics, groups."""
    weight, bias, eps = _NORM_ARGUMENTS[step.name]
    mine = step.get(*eps, 1e-5)
    for other in EPSILONS:
        if other != mine:
            yield given("epsilon", f"eps {mine} -> {other:g}", eps, other)
    if mine:
        yield family("epsilon", f"eps {mine} -> {{value}}", 3.0 * mine, lambda s, n: s.run({eps: n}))
    yield given("scale", "without its scale", weight, None)
    yield changed("1 + scale", "scale -> 1 + scale", weight, lambda w: 1 + w)
    if bias is not None:
        yield given("bias", "without its bias", bias, None)
    if step.name in ("layer_norm", "group_norm", "instance_norm"):
        for text, statistics in _STATISTICS.items():
            yield Variant("norm statistics", text, lambda s, f=statistics: _normalised(s, f))
        text = "variance as E[x^2] - E[x]^2, which cancels where the mean is large"
        yield Variant("fast variance", text, lambda s: _normalised(s, _fast), rounding="rows")
    if step.name == "group_norm":
        channels = step.get(0, "input").shape[1]
        for groups in sorted({1, 2, 4, 8, 16, 32, channels}):
            if channels % groups == 0:
                yield given("groups", f"{step.get(1, 'num_groups')} groups -> {groups}", (1, "num_groups"), groups)
    if step.name == "batch_norm":
        text = "running statistics -> the batch's own"
        yield Variant(
            "batch statistics",
            text,
            lambda s: F.batch_norm(s.get(0, "input"), None, None, s.get(*weight), s.get(4, "bias"), True, 0.1, mine),
        )


def _centred(x: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    return x - x.mean(dims, keepdim=True)


def _unbiased(x: torch.Tensor, dims: tuple[int, ...], eps: float) -> torch.Tensor:
    return _centred(x, dims) / (x.var(dims, keepdim=True, correction=1) + eps).sqrt()


def _outside(x: torch.Tensor, dims: tuple[int, ...], eps: float) -> torch.Tensor:
    return _centred(x, dims) / (x.std(dims, keepdim=True, correction=0) + eps)


def _not_centred(x: torch.Tensor, dims: tuple[int, ...], eps: float) -> torch.Tensor:
    return x / ((x * x).mean(dims, keepdim=True) + eps).sqrt()


def _fast(x: torch.Tensor, dims: tuple[int, ...], eps: float) -> torch.Tensor:
    mean = x.mean(dims, keepdim=True)
    return (x - mean) / ((x * x).mean(dims, keepdim=True) - mean * mean + eps).clamp(min=eps).sqrt()


_STATISTICS = {
    "variance biased -> unbiased": _unbiased,
    "eps inside the root -> outside": _outside,
    "mean subtracted -> not (RMS norm)": _not_centred,
}


def _normalised(step: Step, statistics: Callable[..., torch.Tensor]) -> torch.Tensor:
    """Compute LayerNorm, GroupNorm or InstanceNorm with other statistics."""
    places = _NORM_ARGUMENTS[step.name]
    x, weight, bias = step.get(0, "input"), step.get(*places[0]), step.get(*(places[1] or (99, "")))
    eps = step.get(*places[2], 1e-5)
    if step.name == "layer_norm":
        y = statistics(x, tuple(range(-len(step.get(1, "normalized_shape")), 0)), eps)
    else:
        groups = step.get(1, "num_groups") if step.name == "group_norm" else x.shape[1]
        y = statistics(x.reshape(x.shape[0], groups, -1), (2,), eps).reshape(x.shape)
        weight, bias = (t if t is None else t.reshape(1, -1, *[1] * (x.ndim - 2)) for t in (weight, bias))
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


@switches("softmax", "log_softmax", "cumsum", "glu")
def along_axis(step: Step, around: Around) -> Iterator[Variant]:
    """softmax, mean, sum, ...: over another axis."""
    x, mine = step.get(0, "input"), step.get(1, "dim")
    if isinstance(mine, int):
        for axis in range(x.ndim):
            if axis != mine % x.ndim:
                yield given(f"{step.name} axis", f"axis {mine % x.ndim} -> {axis}", (1, "dim"), axis)


@switches("var", "std")
def variance(step: Step, around: Around) -> Iterator[Variant]:
    function = {"var": torch.var, "std": torch.std}[step.name]
    dims, keep = step.get(1, "dim"), step.kwargs.get("keepdim", False)
    if step.name == "var":
        text = "variance as E[x^2] - E[x]^2, which cancels where the mean is large"
        n = step.get(0, "input").numel() / step.output.numel()
        factor = n / (n - 1) if step.kwargs.get("correction", step.kwargs.get("unbiased", 1)) else 1.0

        def fast(s: Step) -> torch.Tensor:
            x = s.get(0, "input")
            return factor * ((x * x).mean(dims, keepdim=keep) - x.mean(dims, keepdim=keep) ** 2).clamp(min=0)

        yield Variant("fast variance", text, fast, rounding="rows")
    for correction in (0, 1):
        text = f"{step.name} with correction {correction}"
        yield replaced("norm statistics", text, lambda x, c=correction: function(x, dims, correction=c, keepdim=keep))


HIDDEN = -100.0
"""A factor below this hides attention scores, as exp(HIDDEN) is negligible compared to 1."""


@switches("mul", "rmul", "div", "true_divide")
def constant(step: Step, around: Around) -> Iterator[Variant]:
    """x * c, x / c: without the constant, or with another common or fitted one."""
    operand: Any = step.get(1, "other")
    if isinstance(operand, torch.Tensor) and operand.numel() == 1 and operand.is_floating_point():
        operand = float(operand.detach())
    if not isinstance(operand, int | float) or isinstance(operand, bool) or not isinstance(step.output, torch.Tensor):
        return
    if operand < HIDDEN:  # the value of a mask: any other large number is equivalent after a softmax; see also masks.py
        yield replaced("attention mask", f"without {step.name} by {operand:.4g}", lambda x: x)
        return
    divides = step.name in ("div", "true_divide")
    switch = "attention scale" if around.index(step) in around.scored else "scale"
    yield replaced(switch, f"without {step.name} by {operand:.4g}", lambda x: x)
    factors = {
        "its half": operand / 2,
        "its double": 2 * operand,
        "its inverse": 1 / operand if operand else 1.0,
        "its square": operand**2,
        "its root": abs(operand) ** 0.5,
    }
    factors |= {text: 1 / f if divides else f for text, f in inverse_roots(around.sizes).items()}
    for text, factor in factors.items():
        yield given(switch, f"{step.name} by {operand:.4g} -> {text}, {factor:.4g}", (1, "other"), factor)
    text = f"{step.name} by {operand:.4g} -> {{value}}"
    if operand:
        yield family(switch, text, 1.5 * abs(operand), lambda s, n: s.run({(1, "other"): math.copysign(n, operand)}))


@switches("add", "radd", "sub", "rsub", "clamp", "clamp_min")
def small_constant(step: Step, around: Around) -> Iterator[Variant]:
    """x + c: an epsilon, the 1 of `1 + scale`, or another constant."""
    argument = (1, "min" if "clamp" in step.name else "other")
    operand: Any = step.get(*argument)
    if not isinstance(operand, int | float) or isinstance(operand, bool):
        return
    if 0 <= operand <= 1e-2:
        for eps in EPSILONS:
            if eps != operand:
                yield given("epsilon", f"{operand:g} -> {eps:g}", argument, eps)
        if operand:
            yield family("epsilon", f"{operand:g} -> {{value}}", 3.0 * operand, lambda s, n: s.run({argument: n}))
    elif operand == 1 and step.name in ("add", "radd"):
        yield replaced("1 + scale", "1 + x -> x", lambda x: x)
    else:
        for n in (0, 1, 2, -operand, 2 * operand):
            yield given("constant", f"{step.name} {operand:g} -> {n:g}", argument, n)


@switches("mul")
def scale(step: Step, around: Around) -> Iterator[Variant]:
    """Normalized tensor times the module's scale: times 1 + scale."""
    for i, x in enumerate(step.args[:2]):
        if isinstance(x, torch.nn.Parameter) and x.ndim == 1:
            yield changed("1 + scale", "scale -> 1 + scale", (i, ""), lambda w: 1 + w)


def inverse_roots(sizes: Sequence[int]) -> dict[str, float]:
    """Return powers of the sizes, by which attention and embeddings are commonly scaled."""
    return {f"{n}^{power}": n**power for n in sizes for power in (-0.5, -1, 0.5)}
