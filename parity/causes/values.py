"""Switches of what is computed: activations, norms, projections, attention, reductions, constants."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from parity.causes.replay import Step
from parity.causes.variant import Variant, changed, given, orders, replaced

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


def activation(step: Step) -> Iterator[Variant]:
    for name, function in ACTIVATIONS.items():
        switch = "gelu form" if step.name == "gelu" and "gelu" in name else "activation"
        yield replaced(switch, f"{step.name} -> {name}", function)


def linear(step: Step) -> Iterator[Variant]:
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


def norm(step: Step) -> Iterator[Variant]:
    """Every normalisation: epsilon, scale, bias, statistics, groups."""
    weight, bias, eps = _NORM_ARGUMENTS[step.name]
    mine = step.get(*eps, 1e-5)
    for other in EPSILONS:
        if other != mine:
            yield given("epsilon", f"eps {mine} -> {other:g}", eps, other)
    yield given("scale", "without its scale", weight, None)
    if bias is not None:
        yield given("bias", "without its bias", bias, None)
    if step.name in ("layer_norm", "group_norm"):
        for text, statistics in _STATISTICS.items():
            yield Variant("norm statistics", text, lambda s, f=statistics: _normalised(s, f))
        text = "variance as E[x^2] - E[x]^2, which cancels where the mean is large"
        yield Variant("fast variance", text, lambda s: _normalised(s, _fast), rounding=True)
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
    """LayerNorm or GroupNorm with other statistics."""
    x, sizes, weight, bias = step.get(0, "input"), step.get(1, ""), step.get(2, "weight"), step.get(3, "bias")
    eps = step.get(4, "eps", 1e-5)
    if step.name == "layer_norm":
        y = statistics(x, tuple(range(-len(sizes), 0)), eps)
    else:
        y = statistics(x.reshape(x.shape[0], sizes, -1), (2,), eps).reshape(x.shape)
        weight, bias = (t if t is None else t.reshape(1, -1, *[1] * (x.ndim - 2)) for t in (weight, bias))
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def along_axis(step: Step) -> Iterator[Variant]:
    """softmax, mean, sum ...: over another axis."""
    x, mine = step.get(0, "input"), step.get(1, "dim")
    if isinstance(mine, int):
        for axis in range(x.ndim):
            if axis != mine % x.ndim:
                yield given(f"{step.name} axis", f"axis {mine % x.ndim} -> {axis}", (1, "dim"), axis)


_REDUCTIONS: dict[str, Callable[..., torch.Tensor]] = {"mean": torch.mean, "sum": torch.sum, "amax": torch.amax}


def reduction(step: Step) -> Iterator[Variant]:
    dim, keep = step.get(1, "dim"), step.get(2, "keepdim", False)
    for name, function in _REDUCTIONS.items():
        if name != step.name and dim is not None:
            yield replaced("pooling", f"{step.name} -> {name}", lambda x, f=function: f(x, dim, keepdim=keep))
    if isinstance(dim, int):
        text = f"{step.name} without the first entry"
        same = _REDUCTIONS[step.name]
        yield replaced("pooling", text, lambda x: same(x.narrow(dim, 1, x.shape[dim] - 1), dim, keepdim=keep))
    yield from along_axis(step)


def variance(step: Step) -> Iterator[Variant]:
    function = {"var": torch.var, "std": torch.std}[step.name]
    dims, keep = step.get(1, "dim"), step.kwargs.get("keepdim", False)
    for correction in (0, 1):
        text = f"{step.name} with correction {correction}"
        yield replaced("norm statistics", text, lambda x, c=correction: function(x, dims, correction=c, keepdim=keep))


def attention(step: Step, sizes: Sequence[int]) -> Iterator[Variant]:
    """torch's fused attention: scale, mask, order of q, k and v."""
    mine = step.get(6, "scale") or step.get(0, "query").shape[-1] ** -0.5
    for text, scale in {"none": 1.0, **inverse_roots(sizes)}.items():
        if not math.isclose(scale, mine):
            yield given("attention scale", f"scale {mine:.4g} -> {text}", (6, "scale"), scale)
    yield given("attention mask", "not causal -> causal", (5, "is_causal"), True)
    yield Variant(
        "attention mask", "without its mask", lambda s: s.run({(3, "attn_mask"): None, (5, "is_causal"): False})
    )
    for switch, text, function in (
        ("softmax axis", "softmax over the keys -> over the queries", _softmax_of(axis=-2)),
        ("float32 leak", "softmax in float32", _softmax_of(dtype=torch.float32)),
        ("bfloat16 leak", "softmax in bfloat16", _softmax_of(dtype=torch.bfloat16)),
    ):
        yield Variant(switch, text, lambda s, f=function: attention_written_out(s, f), rounding="leak" in switch)
    places = ((0, "query"), (1, "key"), (2, "value"))
    for order in orders(3):
        text = f"query, key, value in the order {order}"
        yield Variant(
            "q/k/v order", text, lambda s, o=order: s.run({places[i]: s.get(*places[o[i]]) for i in range(3)})
        )


def _softmax_of(axis: int = -1, dtype: torch.dtype | None = None) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: x.to(dtype or x.dtype).softmax(axis)


def attention_written_out(step: Step, softmax: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Fused attention without a mask, by its formula, with another `softmax`."""
    q, k, v = step.get(0, "query"), step.get(1, "key"), step.get(2, "value")
    scale = step.get(6, "scale") or q.shape[-1] ** -0.5
    return softmax(q @ k.transpose(-2, -1) * scale).to(v.dtype) @ v


def inverse_roots(sizes: Sequence[int]) -> dict[str, float]:
    """Powers of the sizes at hand: what attention and embeddings are commonly scaled by."""
    return {f"{n}^{power}": n**power for n in sizes for power in (-0.5, -1, 0.5)}


def constant(step: Step, sizes: Sequence[int]) -> Iterator[Variant]:
    """x * c, x / c, x + c: without the constant, or with another common one."""
    operand: Any = step.get(1, "other")
    if not isinstance(operand, int | float) or isinstance(operand, bool):
        return
    if step.name in ("add", "sub"):
        for eps in EPSILONS:
            yield given("epsilon", f"{operand:g} -> {eps:g}", (1, "other"), eps)
        return
    attended = step.output.ndim >= 3 and step.name == "mul"
    switch = "attention scale" if attended else "scale"
    yield replaced(switch, f"without {step.name} by {operand:.4g}", lambda x: x)
    factors = {
        "its half": operand / 2,
        "its double": 2 * operand,
        "its square": operand**2,
        "its root": abs(operand) ** 0.5,
    }
    for text, factor in inverse_roots(sizes).items():
        factors[text] = factor if step.name == "mul" else 1 / factor
    for text, factor in factors.items():
        yield given(switch, f"{step.name} by {operand:.4g} -> {text}, {factor:.4g}", (1, "other"), factor)


VALUES: dict[tuple[str, ...], Callable[[Step], Iterator[Variant]]] = {
    (
        *("gelu", "relu", "silu", "sigmoid", "tanh", "relu6", "hardswish", "hardsigmoid"),
        *("leaky_relu", "elu", "softplus", "mish"),
    ): activation,
    tuple(_NORM_ARGUMENTS): norm,
    ("linear",): linear,
    ("softmax", "log_softmax", "cumsum", "glu"): along_axis,
    ("mean", "sum", "amax"): reduction,
    ("var", "std"): variance,
}
"""Function names -> what is mistaken for them."""

SCALES: dict[tuple[str, ...], Callable[[Step, Sequence[int]], Iterator[Variant]]] = {
    ("scaled_dot_product_attention",): attention,
    ("mul", "div", "add", "sub", "true_divide"): constant,
}
"""The same for what depends on the sizes of the module around."""
