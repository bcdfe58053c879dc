"""Relations of JAX's wrong tensor to the right one and to other known tensors.

Tried after the replay: a relation says what happened, but rarely where.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

import ml_dtypes
import numpy as np

from parity.measure.gates import norm, rel_f

Tensors = Sequence[tuple[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Relation:
    """A possible mistake; `predicted` is the tensor that JAX would have if it were the cause."""

    switch: str
    description: str
    predicted: np.ndarray


def relations(value: np.ndarray, reference: np.ndarray, others: Tensors = ()) -> Iterator[Relation]:
    """Yield relations of JAX's `value` to PyTorch's `reference` and `others` (same layout), most specific first."""
    if value.shape != reference.shape or value.size == 0 or not np.isfinite(value).all():
        return
    if np.iscomplexobj(value) or np.iscomplexobj(reference):  # not implemented for complex numbers
        return
    y, r = value.astype(np.float64), reference.astype(np.float64)
    yield from _formats(y, r)
    yield from _zeros(y)
    yield from _axes(y, r)
    yield from _tensors(y, r, others)
    yield from _scaled(y, r)
    yield from _multiples(y, r, others)
    yield from _temperature(y, r)
    yield from _functions(r)
    yield from _vectors(y, r)


FORMATS = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}
"""Narrowest first: every bfloat16 number is also a float32 number."""


def _formats(y: np.ndarray, r: np.ndarray) -> Iterator[Relation]:
    """All elements of y are representable in a narrower format, and y is close to r."""
    for name, dtype in FORMATS.items():
        with np.errstate(over="ignore"):
            rounded = y.astype(dtype).astype(np.float64)
        if np.array_equal(rounded, y) and rel_f(y, r) < 16 * float(ml_dtypes.finfo(dtype).eps):
            yield Relation(f"{name} leak", f"every element is a {name} number", rounded)
            return


def _zeros(y: np.ndarray) -> Iterator[Relation]:
    if not y.any():
        yield Relation("all zeros", "JAX's tensor is zero", np.zeros_like(y))


def _axes(y: np.ndarray, r: np.ndarray) -> Iterator[Relation]:
    """y is r flipped, rolled, transposed, or with the entries of one axis permuted."""
    for order in itertools.permutations(range(r.ndim)) if r.ndim <= 5 else ():
        if order != tuple(range(r.ndim)) and r.transpose(order).shape == y.shape:
            yield Relation("axis order", f"axes in the order {order}", r.transpose(order))
    for axis, length in enumerate(r.shape):
        if length < 2:
            continue
        yield Relation("axis flipped", f"axis {axis} flipped", np.flip(r, axis))
        for shift in (1, -1):
            text = f"axis {axis} rolled by {shift}"
            yield Relation("shifted by one", text, np.roll(r, shift, axis))
        for count in (3, 2):
            for parts in itertools.permutations(np.split(r, count, axis)) if length % count == 0 else ():
                text = f"the {count} equal parts of axis {axis} in another order"
                yield Relation("parts order", text, np.concatenate(parts, axis))
        found = _permutation(y, r, axis)
        if found is not None:
            yield Relation("axis permuted", f"axis {axis} permuted: {_short(found)}", np.take(r, found, axis))


def _permutation(y: np.ndarray, r: np.ndarray, axis: int) -> np.ndarray | None:
    """Return the permutation of r along `axis` that gives y, or None."""
    a, b = (np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1) for x in (y, r))
    draw = np.random.RandomState(0).standard_normal(a.shape[1])
    mine, theirs = a @ draw, b @ draw
    order = np.empty(len(mine), dtype=int)
    order[np.argsort(mine)] = np.argsort(theirs)
    changed = not np.array_equal(order, np.arange(len(order)))
    return order if changed and np.allclose(theirs[order], mine, rtol=1e-9, atol=0) else None


def _short(order: np.ndarray) -> str:
    return " ".join(map(str, order[:12])) + (" ..." if len(order) > 12 else "")


def _tensors(y: np.ndarray, r: np.ndarray, others: Tensors) -> Iterator[Relation]:
    """y is another tensor, or r with another tensor added, subtracted, or replaced by a third."""
    same = [(name, x.astype(np.float64)) for name, x in others if x.shape == y.shape]
    for name, x in same:
        yield Relation("wrong tensor", f"JAX's tensor is {name}", x)
    for name, x in same:
        yield Relation("residual", f"{name} is added", r + x)
        yield Relation("residual", f"{name} is missing", r - x)
    for (name, x), (instead, z) in itertools.permutations(same[:12], 2):
        yield Relation("residual", f"{instead} in place of {name}", r - x + z)


EQUATIONS = 8
"""Minimum number of distinct elements per fitted number; with fewer, any tensor could be fitted."""


def _different(x: np.ndarray) -> int:
    """Return the number of distinct absolute values among the elements, up to rounding."""
    sizes = np.sort(np.abs(x[x != 0]), axis=None)
    return 0 if sizes.size == 0 else 1 + int((np.diff(sizes) > 1e-9 * sizes[1:]).sum())


def _multiples(y: np.ndarray, r: np.ndarray, others: Tensors) -> Iterator[Relation]:
    """y = r + c x, with c by least squares: a branch with another scale."""
    for name, x in others:
        if x.shape == y.shape and _different(x) >= EQUATIONS:
            factor = float(np.vdot(x, y - r) / norm(x) ** 2)
            yield Relation("residual", f"{factor:.6g} times {name} is added", r + factor * x)


def _scaled(y: np.ndarray, r: np.ndarray) -> Iterator[Relation]:
    """y = c r, with c by least squares; or y = c r where y is not zero (dropout left on)."""
    if _different(r) < EQUATIONS:
        return
    factor = float(np.vdot(r, y) / norm(r) ** 2)
    yield Relation("scale", f"multiplied by {factor:.6g}", factor * r)
    kept = (y != 0) & (r != 0)
    if _different(r[kept]) >= EQUATIONS and not kept.all():
        factor = float(np.median(y[kept] / r[kept]))
        if factor > 1 + 1e-6:  # dropout scales the rest up to keep the mean; a factor of 1 means an activation
            text = f"dropout left on: {1 - kept.mean():.0%} zeros, the rest multiplied by {factor:.6g}"
            yield Relation("dropout on", text, np.where(kept, factor * r, 0.0))


def _temperature(y: np.ndarray, r: np.ndarray) -> Iterator[Relation]:
    """Both are probabilities along the last axis, and the logits of y are those of r times a constant."""
    if not all((x > 0).all() and np.allclose(x.sum(-1), 1) for x in (y, r)):
        return
    mine, theirs = (np.log(x) - np.log(x).mean(-1, keepdims=True) for x in (y, r))
    if _different(theirs) < EQUATIONS or len(theirs.reshape(-1, theirs.shape[-1])) < 2:
        return
    factor = float(np.vdot(theirs, mine) / norm(theirs) ** 2)
    yield Relation("attention scale", f"the logits multiplied by {factor:.6g}", _softmax(factor * np.log(r)))


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


_FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "softmax": _softmax,
    "log softmax": lambda x: np.log(_softmax(x)),
    "exp": np.exp,
    "square": np.square,
    "negation": np.negative,
    "absolute value": np.abs,
    "division by its norm": lambda x: x / np.sqrt((x * x).sum(-1, keepdims=True)),
}


def _functions(r: np.ndarray) -> Iterator[Relation]:
    with np.errstate(all="ignore"):
        for name, function in _FUNCTIONS.items():
            yield Relation("extra step", f"{name} applied to it", function(r))


def _vectors(y: np.ndarray, r: np.ndarray) -> Iterator[Relation]:
    """y - r or y / r is constant along all axes but one: a bias or scale for each entry of that axis."""
    for axis in reversed(range(r.ndim)):
        entries = np.moveaxis(r, axis, 0).reshape(r.shape[axis], -1)
        if min(_different(entry) for entry in entries) < EQUATIONS:  # too few to decide
            continue
        rest = tuple(i for i in range(r.ndim) if i != axis)
        yield Relation("bias", f"a constant added along axis {axis}", r + (y - r).mean(rest, keepdims=True))
        power = (r * r).sum(rest, keepdims=True)
        factor = (y * r).sum(rest, keepdims=True) / np.where(power > 0, power, 1)
        yield Relation("scale", f"a factor along axis {axis}", r * factor)
