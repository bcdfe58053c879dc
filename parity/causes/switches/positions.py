"""Switches for positions: offsets, sinusoids, rotary embeddings.

Sinusoids and rotations are recognized by their values, independent of the code: a table of sines and cosines by
squares that sum to one; a rotation by pairs of elements whose norm it preserves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch

from parity.causes.registry import Around, switches
from parity.causes.replay import Step
from parity.causes.variant import Variant, changed, family, replaced, result

PERIODS = (1e4, 1e3, 1e5, 5e5, 1e6, 100.0, 2e3, 1e7)
SHIFTS = (1, -1, 2, -2)


@switches("*")
def whole_numbers(step: Step, around: Around) -> Iterator[Variant]:
    """Positions and other indices: off by one or two."""
    y = step.output
    if isinstance(y, torch.Tensor) and y.dtype in (torch.int64, torch.int32) and step.name not in ("topk", "sort"):
        for n in SHIFTS:
            yield result("position offset", f"{step.name} -> {step.name} {n:+d}", lambda y, n=n: y + n)


@switches("arange")
def counted(step: Step, around: Around) -> Iterator[Variant]:
    """Floating-point ranges: off by one or two."""
    if step.output.is_floating_point():
        for n in SHIFTS:
            yield result("position offset", f"positions {n:+d}", lambda y, n=n: y + n)


@switches("getitem", "narrow")
def sliced(step: Step, around: Around) -> Iterator[Variant]:
    """Slice of a table: shifted by one or two entries."""
    index = step.get(1, "")
    index = index if isinstance(index, tuple) else (index,)
    if step.name != "getitem" or any(i is Ellipsis or i is None or isinstance(i, torch.Tensor) for i in index):
        return
    for axis, part in enumerate(index):
        if not isinstance(part, slice) or part == slice(None) or part.step not in (None, 1):
            continue
        length = step.args[0].shape[axis]
        start, stop, _ = part.indices(length)
        for n in SHIFTS:
            if start + n >= 0 and stop + n <= length:
                new = (*index[:axis], slice(start + n, stop + n), *index[axis + 1 :])
                text = f"entries {start} to {stop - 1} of axis {axis} -> {start + n} to {stop + n - 1}"
                yield replaced("position offset", text, lambda x, i=new: x[i])


@switches("add", "cat", "mul", "embedding", "getitem")
def sinusoid(step: Step, around: Around) -> Iterator[Variant]:
    """Table of sines and cosines: another period, order or start."""
    for i, table in enumerate(step.args[:2]):
        found = _sinusoid(table)
        if found is None:
            continue
        shape, order = found
        for text, other in tables(table.reshape(-1, table.shape[-1]), order).items():
            for short in (False, True):
                values = (other.float() if short else other).to(table.dtype).reshape(shape)
                yield changed("sinusoid", f"sinusoids: {text}", (i, ""), lambda x, v=values: v)


def _sinusoid(table: Any) -> tuple[tuple[int, ...], str] | None:
    """Return shape and order of a sinusoid table (..., T, D), whose leading axes have length one; else None."""
    if not isinstance(table, torch.Tensor) or not table.is_floating_point() or table.ndim < 2:
        return None
    *outer, length, width = table.shape
    if any(n != 1 for n in outer) or length < 3 or width < 4 or width % 2:
        return None
    x = table.reshape(length, width).double()
    for order in ORDERS:
        s, c = _apart(x, order)
        if torch.allclose(s * s + c * c, torch.ones_like(s), atol=1e-5) and not torch.allclose(s, s[:1]):
            return tuple(table.shape), order
    return None


ORDERS = ("interleaved", "halves")


def _apart(x: torch.Tensor, order: str) -> tuple[torch.Tensor, torch.Tensor]:
    if order == "interleaved":
        return x[..., 0::2], x[..., 1::2]
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]


def _together(s: torch.Tensor, c: torch.Tensor, order: str) -> torch.Tensor:
    return torch.stack((s, c), -1).flatten(-2) if order == "interleaved" else torch.cat((s, c), -1)


def tables(x: torch.Tensor, mine: str) -> dict[str, torch.Tensor]:
    """Return alternative tables for x (T, D), which is in the order `mine`, by description."""
    s, c = _apart(x.double(), mine)
    length, half = s.shape
    found: dict[str, torch.Tensor] = {}
    for order in ORDERS:
        if order != mine:
            found[f"{mine} -> {order}"] = _together(s, c, order)
        found[f"{mine} -> cosine before sine, {order}"] = _together(c, s, order)
    for first in (0, 1, -1, 2, -2):
        for name, power in exponents(half).items():
            for period in PERIODS:
                angle = (torch.arange(length) + first).double()[:, None] / period**power
                for order in ORDERS:
                    parts = [f"period {period:g}"] * (period != 1e4) + [f"positions {first:+d}"] * (first != 0)
                    parts += [name] * (name != "2i/D") + [order] * (order != mine)
                    if len(parts) <= 2:
                        text = "-> " + (", ".join(parts) or "period 10000")
                        found[text] = _together(angle.sin(), angle.cos(), order)
    return {text: table for text, table in found.items() if not torch.allclose(table, x.double(), rtol=0, atol=1e-15)}


def exponents(half: int) -> dict[str, torch.Tensor]:
    """Return the exponents of the frequencies over half the width, by formula."""
    i = torch.arange(half).double()
    return {"2i/D": i / half, "i/(D/2 - 1)": i / max(half - 1, 1), "i/D": i / (2 * half), "4i/D": 2 * i / half}


# ---- rotary embeddings ----


@dataclasses.dataclass(frozen=True)
class Rotation:
    """Rotation of x: pairs (in `order`) times unit complex numbers `by`, which broadcast to (..., D / 2)."""

    x: torch.Tensor
    order: str
    by: torch.Tensor
    axis: int

    def of(self, x: torch.Tensor, by: torch.Tensor | None = None, order: str | None = None) -> torch.Tensor:
        """Rotate x, optionally with another `by` or `order`."""
        order = order or self.order
        z = torch.complex(*(part.contiguous() for part in _apart(x, order))) * (self.by if by is None else by)
        return _together(z.real, z.imag, order).to(x.dtype)


def rotation(x: torch.Tensor, y: torch.Tensor) -> Rotation | None:
    """Return the rotation from x to y, whose angles depend only on one axis (positions) and the pair; None if none."""
    for order in ORDERS:
        a, b = (torch.complex(*(part.double().contiguous() for part in _apart(z, order))) for z in (x, y))
        if not torch.allclose(a.abs(), b.abs(), rtol=1e-6, atol=1e-12):
            continue
        for axis in range(x.ndim - 1):
            others = [i for i in range(x.ndim - 1) if i != axis]
            product = (b * a.conj()).sum(others, keepdim=True) if others else b * a.conj()
            by = product / product.abs()
            if x.shape[axis] > 1 and torch.allclose(a * by, b, rtol=1e-9, atol=1e-12) and not _still(by, axis):
                return Rotation(x, order, by, axis)
    return None


def _still(by: torch.Tensor, axis: int) -> bool:
    return torch.allclose(by, by.narrow(axis, 0, 1).expand(by.shape), atol=1e-9)


def rotations(around: Around) -> list[tuple[Step, Rotation]]:
    """Return the steps whose output is a rotation of an earlier tensor, with the rotation."""
    found: list[tuple[Step, Rotation]] = []
    norms: dict[int, float] = {}

    def size_of(x: torch.Tensor) -> float:
        if id(x) not in norms:
            norms[id(x)] = float(x.detach().norm())
        return norms[id(x)]

    for step in around.steps:
        y = step.output
        if not isinstance(y, torch.Tensor) or y.dtype not in (torch.float64, torch.float32) or y.ndim < 2:
            continue
        if y.shape[-1] < 2 or y.shape[-1] % 2 or y.shape[-2] < 2:
            continue
        size = size_of(y)
        for _, x in around.before(step):
            if x.shape != y.shape or x.dtype != y.dtype or abs(size_of(x) - size) > 1e-9 * size:
                continue
            turned = None if torch.equal(x, y) else rotation(x, y)
            if turned is not None:
                found.append((step, turned))
                break
    return found


@switches("*")
def rotary(step: Step, around: Around) -> Iterator[Variant]:
    """Rotary embeddings: pairs, direction, period, start; left out; also applied to the values."""
    for other, turned in around.cached("rotations", rotations):
        if other is step:
            yield from _turned(step, turned, around)
    yield from _values(step, around)


def _turned(step: Step, mine: Rotation, around: Around) -> Iterator[Variant]:
    """Yield alternatives to a rotation, computed from the unrotated input of each call of the step."""
    all_of = {s.occurrence: r for s, r in around.cached("rotations", rotations) if s.place == step.place}

    def variant(text: str, other: Callable[..., torch.Tensor]) -> Variant:
        return Variant("rotary embedding", text, lambda s: other(all_of[s.occurrence]))

    yield variant("rotary embedding left out", lambda r: r.x.clone())
    order = next(o for o in ORDERS if o != mine.order)
    text = f"pairs {mine.order} -> {order}"
    yield variant(text, lambda r: r.of(r.x, order=order))
    yield variant("rotated backwards (other sign)", lambda r: r.of(r.x, r.by.conj()))
    yield variant("rotated twice", lambda r: r.of(r.of(r.x)))
    for axis in range(mine.x.ndim - 1):
        if axis != mine.axis and mine.x.shape[axis] > 1:
            text = f"rotated along axis {axis} in place of axis {mine.axis}"
            yield variant(text, lambda r, a=axis: r.of(r.x, _along(r, a)))
    for name, by in _angles(mine).items():
        yield variant(name, lambda r, b=by: r.of(r.x, b))
        if order:
            yield variant(f"{name}, pairs {order}", lambda r, b=by: r.of(r.x, b, order))
    half = mine.x.shape[-1] // 2
    if half % 2 == 0:
        yield variant("only the first half of the width rotated", lambda r: _partly(r, half))
    shape, axis = mine.by.shape, mine.axis
    if all(n == 1 for i, n in enumerate(shape[:-1]) if i != axis):
        text = "rotary embedding: period -> {value}"
        yield family(
            "rotary embedding",
            text,
            3e4,
            lambda s, n: all_of[s.occurrence].of(all_of[s.occurrence].x, _formula(all_of[s.occurrence], n, "2i/D", 0)),
        )


def _along(r: Rotation, axis: int) -> torch.Tensor:
    """Return the standard rotation (period 10000) along another axis."""
    other = dataclasses.replace(r, axis=axis)
    return _formula(other, 1e4, "2i/D", 0)


def _formula(r: Rotation, period: float, exponent: str, first: int) -> torch.Tensor:
    length, half = r.x.shape[r.axis], r.by.shape[-1]
    frequency = period ** -exponents(half)[exponent]
    angle = (torch.arange(length) + first).double()[:, None] * frequency
    shape = [1] * r.x.ndim
    shape[r.axis], shape[-1] = length, half
    return torch.polar(torch.ones_like(angle), angle).reshape(shape)


def _angles(r: Rotation) -> dict[str, torch.Tensor]:
    """Return other angles, by description."""
    found: dict[str, torch.Tensor] = {}
    for first in (0, *SHIFTS):
        for name in exponents(r.by.shape[-1]):
            for period in PERIODS:
                parts = [f"period {period:g}"] * (period != 1e4) + [f"positions {first:+d}"] * (first != 0)
                parts += [f"exponents {name}"] * (name != "2i/D")
                if len(parts) <= 1:
                    text = ", ".join(parts) or "period 10000"
                    found[f"rotary embedding: {text}"] = _formula(r, period, name, first)
    steps = r.by.narrow(r.axis, 1, 1) / r.by.narrow(r.axis, 0, 1)
    for n in SHIFTS:
        found[f"rotary embedding: positions {n:+d} of its own"] = r.by * steps**n
    return {text: by for text, by in found.items() if not torch.allclose(by, r.by, rtol=0, atol=1e-14)}


def _partly(r: Rotation, half: int) -> torch.Tensor:
    part = dataclasses.replace(r, x=r.x[..., :half], by=r.by[..., : half // 2])
    return torch.cat((part.of(part.x, _formula(part, 1e4, "2i/D", 0)), r.x[..., half:]), -1)


def _values(step: Step, around: Around) -> Iterator[Variant]:
    """Values of attention, rotated like the queries."""
    place = {"scaled_dot_product_attention": (2, "value"), "matmul": (1, "other"), "bmm": (1, "mat2")}.get(step.name)
    if place is None:
        return
    values = step.get(*place)
    for _, r in around.cached("rotations", rotations)[:2]:
        if isinstance(values, torch.Tensor) and values.shape[-1] == r.x.shape[-1] and values.ndim == r.x.ndim:
            text = "rotary embedding on the values too"
            yield changed("rotary embedding", text, place, lambda v, r=r: r.of(v))
