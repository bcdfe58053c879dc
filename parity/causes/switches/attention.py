"""Switches for attention: scale, mask, softmax, heads; fused or written out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from parity.causes.precision.jax_softmax import FORMATS, softmax_by_jax
from parity.causes.registry import Around, switches
from parity.causes.replay import Step
from parity.causes.switches.masks import hidden_of, masks, softmax_of
from parity.causes.switches.values import inverse_roots
from parity.causes.variant import Variant, family, given, orders, result


@dataclasses.dataclass(frozen=True)
class Scores:
    """Attention before the softmax: scores (..., Q, K) including the bias, hidden positions, and added bias."""

    raw: torch.Tensor
    hidden: torch.Tensor | None
    bias: torch.Tensor | None = None


PLACES = ((0, "query"), (1, "key"), (2, "value"))

Softmax = Callable[..., torch.Tensor]


@switches("scaled_dot_product_attention")
def attention(step: Step, around: Around) -> Iterator[Variant]:
    """Fused attention of PyTorch, written out: scale, mask, softmax, order of q, k and v, grouped heads."""
    if step.get(4, "dropout_p", 0.0):
        return
    scores = _scores(step)
    mine = step.get(6, "scale") or step.get(0, "query").shape[-1] ** -0.5
    scales = {"none": 1.0, "its square, applied to q and to k": mine**2, "its root": mine**0.5}
    for text, scale in {**scales, **inverse_roots(around.sizes)}.items():
        if not math.isclose(scale, mine):
            yield given("attention scale", f"scale {mine:.4g} -> {text}", (6, "scale"), scale)
    for text, probabilities in masks(scores.raw.shape, scores.hidden):
        yield _written("attention mask", text, lambda s, f=probabilities: f(s.raw, s.hidden), scores)
    if scores.bias is not None:
        yield from _biases(scores)
    yield _written("softmax axis", "softmax over the keys -> over the queries", _over_queries, scores)
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        for function in (_softmax, _softmax_by_jax):
            variant = _written(f"{name} leak", f"softmax in {name}", lambda s, d=dtype, f=function: f(s, d), scores)
            yield dataclasses.replace(variant, rounding="elements")
    for order in orders(3):
        text = f"query, key, value in the order {order}"
        yield Variant(
            "q/k/v order", text, lambda s, o=order: s.run({PLACES[i]: s.get(*PLACES[o[i]]) for i in range(3)})
        )
    for a, b in ((1, 2), (2, 1), (0, 1), (1, 0)):
        text = f"{PLACES[a][1]} -> {PLACES[b][1]}"
        yield Variant("q/k/v order", text, lambda s, a=a, b=b: s.run({PLACES[a]: s.get(*PLACES[b])}))
    if step.get(7, "enable_gqa", False):
        yield Variant("kv heads", "heads 0 0 1 1 -> 0 1 0 1 (tiled)", _tiled)
    text = f"scale {mine:.4g} -> {{value}}"
    yield family("attention scale", text, 1.5 * mine, lambda s, n: s.run({(6, "scale"): n}))


def _scores(step: Step) -> Scores:
    """Return scaled scores; boolean, causal and large negative masks as `hidden`, other mask values as `bias`."""
    q, k = step.get(0, "query"), step.get(1, "key")
    if step.get(7, "enable_gqa", False):
        k = k.repeat_interleave(q.shape[-3] // k.shape[-3], -3)
    scale = step.get(6, "scale") or q.shape[-1] ** -0.5
    raw, mask = q @ k.transpose(-2, -1) * scale, step.get(3, "attn_mask")
    hidden, bias = None, None
    if step.get(5, "is_causal", False):
        hidden = torch.ones(raw.shape[-2:], dtype=torch.bool).triu(1)
    elif mask is not None and mask.dtype == torch.bool:
        hidden = ~mask
    elif mask is not None:
        hidden = mask <= -1e3
        bias = mask.masked_fill(hidden, 0.0)
        hidden, bias = (hidden if hidden.any() else None), (bias if bias.any() else None)
        raw = raw if bias is None else raw + bias
    return Scores(raw, None if hidden is None else hidden.expand(raw.shape), bias)


def _written(switch: str, text: str, softmax: Softmax, recorded: Scores) -> Variant:
    """Return a variant of the written-out step with another softmax, using the mask of the step as replayed."""

    def alter(step: Step) -> torch.Tensor:
        v = step.get(2, "value")
        if step.get(7, "enable_gqa", False):
            v = v.repeat_interleave(step.get(0, "query").shape[-3] // v.shape[-3], -3)
        return softmax(_scores(step)).to(v.dtype) @ v

    return Variant(switch, text, alter)


def _softmax(scores: Scores, dtype: torch.dtype) -> torch.Tensor:
    return softmax_of(scores.raw.to(dtype), scores.hidden)


def _softmax_by_jax(scores: Scores, dtype: torch.dtype) -> torch.Tensor:
    x = scores.raw if scores.hidden is None else scores.raw.masked_fill(scores.hidden, -math.inf)
    return softmax_by_jax(x, dtype)


def _over_queries(scores: Scores) -> torch.Tensor:
    return softmax_of(scores.raw.transpose(-2, -1), _turned(scores.hidden)).transpose(-2, -1)


def _turned(x: torch.Tensor | None) -> torch.Tensor | None:
    return None if x is None else x.transpose(-2, -1)


def _biases(scores: Scores) -> Iterator[Variant]:
    """Yield variants of an additive mask: left out, negated, transposed, added twice."""

    def plus(text: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Variant:
        def softmax(s: Scores) -> torch.Tensor:
            assert s.bias is not None
            return softmax_of(s.raw - s.bias + change(s.bias), s.hidden)

        return _written("attention bias", f"what is added to the scores -> {text}", softmax, scores)

    yield plus("nothing", torch.zeros_like)
    yield plus("its negative", torch.neg)
    yield plus("transposed", lambda b: b.transpose(-2, -1))
    yield plus("twice", lambda b: 2 * b)


def _tiled(step: Step) -> torch.Tensor:
    q, k, v = (step.get(*place) for place in PLACES)
    n = q.shape[-3] // k.shape[-3]
    k, v = (torch.cat([x] * n, -3) for x in (k, v))
    return step.run({PLACES[1]: k, PLACES[2]: v})


@switches("matmul", "bmm", "einsum")
def product(step: Step, around: Around) -> Iterator[Variant]:
    """Product of queries and keys: exchanged."""
    y = step.output
    if around.index(step) in around.scored and y.ndim > 1 and y.shape[-1] == y.shape[-2]:
        yield result("q/k/v order", "query and key exchanged", lambda y: y.transpose(-2, -1))


@switches("softmax")
def softmax(step: Step, around: Around) -> Iterator[Variant]:
    """Softmax: mask of the attention scores; computed in another format."""
    x = step.get(0, "input")
    dim = step.get(1, "dim", -1)
    for dtype, name in FORMATS.items():
        if x.dtype == torch.float64 and isinstance(dim, int):
            yield Variant(
                f"{name} leak",
                f"softmax in {name}",
                lambda s, d=dtype: softmax_by_jax(s.get(0, "input"), d, dim),
                rounding="elements",
            )
    if x.ndim < 2 or dim not in (-1, x.ndim - 1) or step.get(2, "dtype", x.dtype) not in (None, x.dtype):
        return
    found = [hidden_of(other, around.before(other)) for other in around.same(step)]
    raw, hidden = found[step.occurrence] if step.occurrence < len(found) else (x, None)
    if around.index(step) not in around.scored and hidden is None and not _square(x):
        return
    for text, probabilities in masks(raw.shape, hidden):

        def alter(s: Step, f: Any = probabilities) -> torch.Tensor:
            raw, hidden = found[s.occurrence]
            # Scores before the mask are recorded; if nothing is hidden, the actual input is used.
            return f(s.get(0, "input") if hidden is None else raw, hidden)

        yield Variant("attention mask", text, alter)


def _square(x: torch.Tensor) -> bool:
    return x.ndim >= 3 and x.shape[-1] == x.shape[-2]
