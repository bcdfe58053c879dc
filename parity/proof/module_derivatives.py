"""Derivative of every module's own arithmetic at the reference's values: the forced run, applied to the backward pass.

A wrong derivative affects the gradients of all earlier layers, so a wrong gradient does not locate the mistake. Here
every call is decoupled from the others: its inputs are the reference's plus a variable z, the outputs of the modules
inside it are the reference's plus a variable u, and everything it computes (its outputs o, and the inputs g that it
passes to inner modules) is projected on fixed random directions a and b. One backward pass through

    S = sum over calls of <o, a> + <g, b>

then gives, for every call, the derivative of its own arithmetic only: dS/dz with respect to its inputs, dS/du (of the
inner calls) with respect to the outputs of inner modules, dS/dp with respect to its parameters.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from parity.carry.convert import Ledger, to_numpy, torch_arrays
from parity.causes import enclosing
from parity.causes.training.gradients import (
    Term,
    as_cause,
    embedding_cause,
    gradient_cause,
    related_cause,
    untied_cause,
)
from parity.measure.cancellation import with_noise
from parity.measure.gates import Gates, Row, norm
from parity.pairing.match_calls import Pair, Pairing
from parity.recording.capture import Call, Key, torch_hooks
from parity.recording.channels import Axes
from parity.recording.transformations import watched
from parity.report.findings import Cause
from parity.runs.jax_side import JaxSide
from parity.runs.torch_side import TorchSide


@dataclasses.dataclass(frozen=True)
class Derivatives:
    """Derivatives of S with respect to the inputs (z) and returned outputs (u) of every call, and every parameter."""

    inputs: dict[Key, list[np.ndarray]]
    outputs: dict[Key, list[np.ndarray]]
    params: dict[str, np.ndarray]


def backward_rows(
    ours: TorchSide, theirs: JaxSide, arrays: Sequence[np.ndarray], pairing: Pairing, ledger: Ledger, gates: Gates
) -> tuple[list[Row], tuple[Cause, ...]]:
    """Compare the derivative of each module's own arithmetic in both frameworks: forced, float64, one row per module.

    Only calls whose inputs are all paired take part. Integers and booleans are passed unchanged; only floating-point
    and complex tensors are differentiated. The causes of failures are returned as well.
    """
    pairs = [pair for pair in pairing.pairs if pair.inputs is not None and _whole(pair, pairing)]
    calls = ours.forward(arrays, only={pair.torch for pair in pairs})
    wanted = _torch_derivatives(ours, arrays, pairs, calls)
    if wanted is None:
        return [], ()
    known = {entry.torch for entry in ledger}  # JAX may hold a tied tensor under only one of its names
    wanted = dataclasses.replace(wanted, params={name: g for name, g in wanted.params.items() if name in known})
    tied = {name: first for name, first in _tied(ours.model).items() if name in known}
    given = _jax_derivatives(theirs, arrays, pairs, calls, ledger, tied.keys() | wanted.params.keys())
    rows, causes = [], []
    noise = functools.cache(lambda: _float32_errors(ours, arrays, pairs, pairing, calls, wanted))
    for name, terms in _terms(pairs, pairing, calls, wanted, given).items():
        errors = _errors(terms)
        row = Row(name, "derivative", "forced", "float64", max(errors, default=0.0), gates.f64_gradient)
        row = row if row.passed else with_noise(row, noise().get(name, 0.0))
        rows.append(row)
        if not row.passed:
            wrong = [term for term, error in zip(terms, errors, strict=True) if error > row.gate]
            others = {first: {n: given.params[n] for n in tied if tied[n] == first} for first in tied.values()}
            causes += _cause(ours, arrays, pairs, name, terms, wrong, others, row)
    return rows, tuple(causes)


def _errors(terms: Sequence[Term]) -> list[float]:
    largest = max((norm(term.wanted) for term in terms), default=0.0)
    return [term.error(largest) for term in terms]


def _float32_errors(
    side: TorchSide,
    arrays: Sequence[np.ndarray],
    pairs: Sequence[Pair],
    pairing: Pairing,
    calls: Mapping[Key, Call],
    wanted: Derivatives,
) -> dict[str, float]:
    """Return each module's largest derivative error in PyTorch's float32; only computed if a module fails."""
    single = TorchSide.of(side.model, "float32", apply=side.apply, design=side.design)
    found = _torch_derivatives(single, arrays, pairs, calls)
    if found is None:
        return {}
    found = dataclasses.replace(found, params={name: found.params[name] for name in wanted.params})
    same = [dataclasses.replace(p, input_axes=_as_is(p.input_axes), output_axes=_as_is(p.output_axes)) for p in pairs]
    terms = _terms(same, pairing, calls, wanted, found)
    return {name: max(_errors(own), default=0.0) for name, own in terms.items()}


def _as_is(axes: Sequence[Axes]) -> tuple[Axes, ...]:
    return (None,) * len(axes)


def _tied(model: torch.nn.Module) -> dict[str, str]:
    """Map the additional names of tied parameters to their first name."""
    first: dict[int, str] = {}
    found: dict[str, str] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        if id(param) in first and param.requires_grad:
            found[name] = first[id(param)]
        first.setdefault(id(param), name)
    return found


def _cause(
    side: TorchSide,
    arrays: Sequence[np.ndarray],
    pairs: Sequence[Pair],
    module: str,
    terms: Sequence[Term],
    wrong: Sequence[Term],
    tied: Mapping[str, Mapping[str, np.ndarray]],
    row: Row,
) -> list[Cause]:
    """Return the most specific cause of a module's wrong derivatives: a single parameter, a relation that all share,
    or a step of the computation."""
    if len(wrong) == 1 and wrong[0].by[0] == "parameter":
        name = wrong[0].by[1]
        holder = dict(side.model.named_modules()).get(name.rpartition(".")[0])
        found = embedding_cause(holder, wrong[0], row.gate) or untied_cause(
            name, tied.get(name, {}), wrong[0], row.gate
        )
        if found is not None:
            return [as_cause(module, found, row.error, 0.0)]
    alike = related_cause(wrong, row.gate)
    calls = [pair for pair in pairs if pair.name == module]
    if alike is None and len(calls) == 1:
        paired = [pair.torch for pair in pairs]
        key = calls[0].torch
        alike = gradient_cause(side.model, side.inputs(arrays), key, paired, terms, _direction, row.gate)
    return [] if alike is None else [as_cause(module, alike[:2], row.error, alike[2])]


def _whole(pair: Pair, pairing: Pairing) -> bool:
    return len(pair.inputs or ()) == len(pairing.shapes[pair.torch].inputs)


def _moves(array: np.ndarray) -> bool:
    """Return whether the array has a differentiable dtype."""
    return bool(np.issubdtype(array.dtype, np.inexact))


def _direction(key: Key, what: str, index: int, shape: tuple[int, ...], part: str = "") -> np.ndarray:
    """Return a fixed random direction of norm about 1 in PyTorch's layout; `part` selects a different one."""
    draw = np.random.RandomState(zlib.crc32(repr((key, what + part, index)).encode()))
    return np.asarray(draw.standard_normal(shape) / math.sqrt(math.prod(shape)))  # NumPy returns a scalar for shape ()


def _torch_derivatives(
    side: TorchSide, arrays: Sequence[np.ndarray], pairs: Sequence[Pair], calls: Mapping[Key, Call]
) -> Derivatives | None:
    """Compute the derivatives in PyTorch; None if nothing is differentiable."""
    chosen = {pair.torch for pair in pairs}
    z: dict[Key, list[torch.Tensor]] = {}
    u: dict[Key, list[torch.Tensor]] = {}
    terms: list[torch.Tensor] = []

    def project(key: Key, what: str, tensors: list[torch.Tensor]) -> None:
        for i, x in enumerate(tensors):
            if x.requires_grad:
                parts = {"": x.real, "imaginary": x.imag} if x.is_complex() else {"": x}
                for part, y in parts.items():
                    terms.append((y * torch.from_numpy(_direction(key, what, i, tuple(x.shape), part)).to(y)).sum())

    def before(key: Key, tensors: list[torch.Tensor]) -> list[torch.Tensor] | None:
        if key not in chosen:
            return None
        project(key, "given", tensors)
        z[key] = _moving(side.inputs(calls[key].inputs or []))
        # A clone rather than the leaf itself, since a module may modify its input in place.
        return [x.clone() for x in z[key]]

    def after(key: Key, tensors: list[torch.Tensor]) -> list[torch.Tensor] | None:
        if key not in chosen:
            return None
        project(key, "returned", tensors)
        u[key] = _moving(side.inputs(calls[key].outputs))
        return [x.clone() for x in u[key]]

    side.model.zero_grad()
    with torch_hooks(side.model, before, after):
        side.apply(side.model, side.inputs(arrays))
    if not terms:
        return None
    torch.stack(terms).sum().backward()
    named = side.model.named_parameters(remove_duplicate=False)
    params = {name: _gradient(param) for name, param in named if param.requires_grad}
    side.model.zero_grad()
    return Derivatives(_gradients(z), _gradients(u), params)


def _moving(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [x.requires_grad_(x.is_floating_point() or x.is_complex()) for x in tensors]


def _gradient(tensor: torch.Tensor) -> np.ndarray:
    return to_numpy(torch.zeros_like(tensor) if tensor.grad is None else tensor.grad)


def _gradients(tensors: Mapping[Key, Sequence[torch.Tensor]]) -> dict[Key, list[np.ndarray]]:
    return {key: [_gradient(x) for x in found if x.requires_grad] for key, found in tensors.items()}


def _aligned(array: np.ndarray, axes: Axes) -> np.ndarray:
    return array if axes is None else array.transpose(axes)


def _jax_derivatives(
    side: JaxSide,
    arrays: Sequence[np.ndarray],
    pairs: Sequence[Pair],
    calls: Mapping[Key, Call],
    ledger: Ledger,
    trained: Collection[str],
) -> Derivatives:
    """Compute the derivatives in JAX; the result has PyTorch's keys and JAX's layout."""
    by_jax = {pair.jax: pair for pair in pairs}
    entries = {entry.jax for entry in ledger if entry.torch in trained}
    references = {pair.jax: pair.reference(calls[pair.torch]) for pair in pairs}
    with side.switches():
        z = {key: [jnp.asarray(x) for x in call.inputs or [] if _moves(x)] for key, call in references.items()}
        u = {key: [jnp.asarray(x) for x in call.outputs if _moves(x)] for key, call in references.items()}
        parts: Any = nnx.split(side.model, _among(entries), ...)
        graphdef, state, rest = parts
        inputs = side.inputs(arrays)

        def total(state: nnx.State, z: Any, u: Any, rest: nnx.State) -> jax.Array:
            terms: list[jax.Array] = []

            def project(key: Key, what: str, found: list[jax.Array], axes: Sequence[Axes]) -> None:
                for i, (x, a) in enumerate(zip(found, axes, strict=True)):
                    if not jnp.issubdtype(x.dtype, jnp.inexact):
                        continue
                    back = range(x.ndim) if a is None else np.argsort(a)
                    shape = tuple(x.shape[int(j)] for j in back)
                    parts = {"": x.real, "imaginary": x.imag} if jnp.iscomplexobj(x) else {"": x}
                    for part, y in parts.items():
                        terms.append((y * _aligned(_direction(by_jax[key].torch, what, i, shape, part), a)).sum())

            def before(key: Key, found: list[jax.Array]) -> list[jax.Array] | None:
                if key not in z:
                    return None
                project(key, "given", found, by_jax[key].input_axes)
                return _filled(references[key].inputs or [], z[key])

            def after(key: Key, found: list[jax.Array]) -> list[jax.Array] | None:
                if key not in u:
                    return None
                project(key, "returned", found, by_jax[key].output_axes)
                return _filled(references[key].outputs, u[key])

            # New variables at this trace level, because counters of random draws may be written.
            model = nnx.merge(graphdef, state, jax.tree.map(lambda x: x, rest))
            side.apply(watched(model, before, after), inputs)
            return jnp.stack(terms).sum()

        params, dz, du = side.run(jax.grad(total, argnums=(0, 1, 2)), state, z, u, rest)
    # JAX's gradients with respect to complex numbers are the conjugates of PyTorch's.
    named = {".".join(map(str, path)): np.asarray(grad[...]).conj() for path, grad in nnx.to_flat_state(params)}
    return Derivatives(
        {by_jax[key].torch: [np.asarray(x).conj() for x in found] for key, found in dz.items()},
        {by_jax[key].torch: [np.asarray(x).conj() for x in found] for key, found in du.items()},
        torch_arrays(ledger, named, gradients=True),
    )


def _filled(reference: Sequence[np.ndarray], moving: Sequence[jax.Array]) -> list[jax.Array]:
    """Return the reference with its differentiable arrays replaced by `moving`."""
    supply = iter(moving)
    return [next(supply) if _moves(x) else jnp.asarray(x) for x in reference]


def _among(names: Collection[str]) -> Callable[[Any, Any], bool]:
    return lambda path, _: ".".join(map(str, path)) in names


def _terms(
    pairs: Sequence[Pair], pairing: Pairing, calls: Mapping[Key, Call], wanted: Derivatives, given: Derivatives
) -> dict[str, list[Term]]:
    """Return the derivatives of each module's own arithmetic, in the order of the calls."""
    found: dict[str, list[Term]] = {pair.name: [] for pair in pairs}
    for pair in pairs:
        call = calls[pair.torch]
        places = _places(call.inputs or [], pair.input_axes)
        for (i, axes), a, b in zip(places, wanted.inputs[pair.torch], given.inputs[pair.torch], strict=True):
            found[pair.name].append(Term(("input", None, i), f"input {i}", a, _restored(b, axes)))
        around = enclosing(pairing.pairs, pair)
        if around is not None and around.name in found:
            places = _places(call.outputs, pair.output_axes)
            for (i, axes), a, b in zip(places, wanted.outputs[pair.torch], given.outputs[pair.torch], strict=True):
                by = f"the output of {pair.name}"
                found[around.name].append(Term(("output", pair.torch, i), by, a, _restored(b, axes)))
    for name, gradient in wanted.params.items():
        owner = _owner(name, found)
        if owner in found:
            found[owner].append(Term(("parameter", name, 0), name, gradient, given.params[name]))
    return found


def _places(tensors: Sequence[np.ndarray], axes: Sequence[Axes]) -> list[tuple[int, Axes]]:
    """Return the index and layout of each differentiable tensor."""
    return [(i, a) for i, (x, a) in enumerate(zip(tensors, axes, strict=True)) if _moves(x)]


def _restored(array: np.ndarray, axes: Axes) -> np.ndarray:
    """Permute an array from JAX's layout to PyTorch's."""
    return array if axes is None else array.transpose(np.argsort(axes))


def _owner(parameter: str, modules: Collection[str]) -> str:
    """Return the innermost module among `modules` that contains the parameter."""
    path = parameter
    while path:
        path = path.rpartition(".")[0]
        if path in modules:
            return path
    return ""
