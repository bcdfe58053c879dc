"""Mistakes with attention masks.

`hidden` is true where a query may not attend to a key. Causality is inferred from it: `hidden` is the upper triangle,
the columns of padding, or both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch

from parity.causes.replay import Step

Probabilities = Callable[..., torch.Tensor]
"""Function that computes attention weights (..., Q, K) from unmasked scores and hidden positions."""

LOW = -1e3
"""Values below this, added to the scores, hide a position."""


def softmax_of(scores: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
    return (scores if hidden is None else scores.masked_fill(hidden, -math.inf)).softmax(-1)


def hidden_of(step: Step, before: Sequence[tuple[str, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the scores of a softmax before its mask, and the positions that the mask hides (None: no mask).

    The scores are the earlier tensor that equals the softmax's input, except at hidden positions, where it is far
    larger.
    """
    x = step.get(0, "input")
    for _, other in reversed(before):
        if other.shape != x.shape or other.dtype != x.dtype or not torch.isfinite(other).all():
            continue
        hidden = x - other < LOW
        if hidden.any() and not hidden.all() and torch.equal(x[~hidden], other[~hidden]):
            return other, hidden
    return x, None


def masks(shape: Sequence[int], hidden: torch.Tensor | None) -> Iterator[tuple[str, Probabilities]]:
    """Yield (description, attention) for every mistake that is possible with this mask."""
    queries, keys = shape[-2:]
    if hidden is None:
        yield from _hiding(_causal(queries, keys, "none"))
        return
    yield "without its mask", lambda s, h: s.softmax(-1)
    yield from _hiding(_other(hidden, queries, keys))
    yield from _applied()


Change = Callable[..., torch.Tensor]
"""Function that computes other hidden positions from the hidden positions and the scores."""


def _hiding(changes: Iterator[tuple[str, Change]]) -> Iterator[tuple[str, Probabilities]]:
    """Apply other masks with -inf, -1e30 and -1e9, which differ where all keys of a query are hidden."""
    for text, change in changes:
        yield text, lambda s, h, c=change: softmax_of(s, c(h, s))
        yield text, lambda s, h, c=change: s.masked_fill(c(h, s), -1e30).softmax(-1)
        yield text, lambda s, h, c=change: (s - 1e9 * c(h, s)).softmax(-1)


def _triangle(scores: torch.Tensor, diagonal: int) -> torch.Tensor:
    """Return True where key > query + diagonal - 1; `diagonal` 1 hides all later keys."""
    return torch.ones(scores.shape[-2:], dtype=torch.bool).triu(diagonal)


def _causal(queries: int, keys: int, mine: str) -> Iterator[tuple[str, Change]]:
    for diagonal, what in ((1, "causal"), (0, "causal, without the diagonal"), (2, "causal, one token ahead seen")):
        yield f"{mine} -> {what}", lambda h, s, d=diagonal: _triangle(s, d).expand(s.shape)
    yield f"{mine} -> causal, the wrong way round", lambda h, s: _triangle(s, 1).mT.expand(s.shape)
    if queries != keys:
        text = f"{mine} -> causal, aligned to the last key"
        yield text, lambda h, s: _triangle(s, 1 + keys - queries).expand(s.shape)


def _other(hidden: torch.Tensor, queries: int, keys: int) -> Iterator[tuple[str, Change]]:
    yield "mask -> inverted", lambda h, s: ~_of(h)
    offset = keys - queries
    for aligned, first in (("", 1), (" (aligned to the last key)", 1 + offset)) if offset else (("", 1),):
        triangle = torch.ones(queries, keys, dtype=torch.bool).triu(first)
        if not triangle.any() or not hidden[..., triangle].all():
            continue
        pure = bool((hidden == triangle).all())
        for shift, what in ((-1, "the token itself hidden"), (1, "one token ahead seen"), (2, "two tokens ahead seen")):
            text = f"causal mask{aligned} with diagonal {first} -> {first + shift}: {what}"
            yield text, lambda h, s, f=first, n=shift: _rest(_of(h), s, f) | _triangle(s, f + n)
        if offset:
            text = f"causal mask{aligned} -> aligned to the {'first' if aligned else 'last'} key"
            other = 1 if aligned else 1 + offset
            yield text, lambda h, s, f=first, o=other: _rest(_of(h), s, f) | _triangle(s, o)
        if not pure:
            yield from _both(first)
    if queries == keys:
        yield "mask -> transposed: on the query axis in place of the key axis", lambda h, s: _of(h).mT
    yield from _window(hidden, queries, keys)
    if hidden.ndim > 2 and hidden.shape[0] > 1:
        yield "mask -> that of the sample before", lambda h, s: _of(h).roll(1, 0)
        yield "mask -> that of the first sample", lambda h, s: _of(h)[:1].expand(s.shape)
        yield "mask -> in the reverse order of the samples", lambda h, s: _of(h).flip(0)


def _rest(hidden: torch.Tensor, scores: torch.Tensor, first: int) -> torch.Tensor:
    """Return the hidden positions besides the triangle: whole columns (padding) if possible, else those below it."""
    triangle, columns = _triangle(scores, first), hidden[..., -1:, :].expand(scores.shape)
    return columns if torch.equal(hidden.expand(scores.shape), columns | triangle) else hidden & ~triangle


def _both(first: int) -> Iterator[tuple[str, Change]]:
    """Causal and padding mask combined: one ignored or inverted, both intersected, or padding on the wrong axis."""

    def padded(h: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return _of(h)[..., -1:, :].expand(s.shape)

    yield "causal and padding mask -> padding ignored", lambda h, s: _triangle(s, first).expand(s.shape)
    yield "causal and padding mask -> causality ignored", lambda h, s: padded(_of(h), s)
    yield (
        "causal and padding mask -> padding on the query axis in place of the key axis",
        lambda h, s: _triangle(s, first) | padded(_of(h), s).mT,
    )
    yield "causal and padding mask -> padding inverted", lambda h, s: _triangle(s, first) | ~padded(_of(h), s)
    yield "causal and padding mask -> hidden only where both hide", lambda h, s: _triangle(s, first) & padded(_of(h), s)


def _window(hidden: torch.Tensor, queries: int, keys: int) -> Iterator[tuple[str, Change]]:
    """Local window of keys before the query: one key fewer or more, twice the width, no window."""
    row = hidden.reshape(-1, queries, keys)[0, -1]
    width = int((~row).sum())
    lower = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries - width)
    if not 0 < width < keys or not lower.any() or not bool(hidden[..., lower].all()):
        return
    for other in (width - 1, width + 1, 2 * width):
        text = f"window of {width} keys -> {other}"

        def change(h: torch.Tensor | None, s: torch.Tensor, n: int = other) -> torch.Tensor:
            edge = keys - queries
            ones = torch.ones(queries, keys, dtype=torch.bool)
            return (_of(h) & ~ones.tril(edge - width)) | ones.tril(edge - n)

        yield text, change
    yield (
        f"window of {width} keys -> no window",
        lambda h, s: _of(h) & ~torch.ones(queries, keys).bool().tril(keys - queries - width),
    )


def _applied() -> Iterator[tuple[str, Probabilities]]:
    """Right mask applied in a wrong way."""
    yield "mask before the softmax -> after it", lambda s, h: s.softmax(-1) * ~_of(h)

    def renormalised(s: torch.Tensor, h: torch.Tensor | None) -> torch.Tensor:
        # 1e-9 makes it differ from a mask before the softmax; without it there would be no error.
        y = s.softmax(-1) * ~_of(h)
        return y / (y.sum(-1, keepdim=True) + 1e-9)

    yield "mask before the softmax -> after it, made to sum to one", renormalised
    yield "mask added as -inf -> multiplied with the scores", lambda s, h: (s * ~_of(h)).softmax(-1)
    yield "mask added as -inf -> added as 0 and 1 (1 where seen)", lambda s, h: (s + (~_of(h)).to(s)).softmax(-1)
    yield "mask added as -inf -> added as 0 and 1 (1 where hidden)", lambda s, h: (s + _of(h).to(s)).softmax(-1)
    yield "mask added as -inf -> 1 subtracted where hidden", lambda s, h: (s - _of(h).to(s)).softmax(-1)
    yield "mask added as -inf -> multiplied with where it hides", lambda s, h: (s * _of(h)).softmax(-1)
    for value in (0.0, 1.0, -1.0, 1e-9, -1e-9, 1e9, -10.0, -100.0, float(torch.finfo(torch.float32).tiny)):
        text = f"hidden scores -inf -> {value:g}"
        yield text, lambda s, h, v=value: s.masked_fill(_of(h), v).softmax(-1)
    yield "hidden scores -inf -> +inf", lambda s, h: s.masked_fill(_of(h), 1e30).softmax(-1)
    text = "mask of -inf added -> subtracted"
    yield text, lambda s, h: (s + 1e9 * _of(h)).softmax(-1)


def _of(hidden: torch.Tensor | None) -> torch.Tensor:
    if hidden is None:
        raise ValueError("nothing is hidden")
    return hidden
