"""Record the random draws of a flax model: call sites, keys, and unsupported random operations."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import jaxprs_in_params

from parity.random_draws.jax_draws import intercepted, nothing
from parity.random_draws.matching import Law, Site, source_line
from parity.recording.capture import Key
from parity.recording.transformations import call_hooks
from parity.runs.jax_side import JaxSide


def _folders() -> Iterator[str]:
    """Yield the folders of JAX and of the libraries of layers, as far as they are installed."""
    for name in ("jax", "flax", "equinox", "haiku"):
        found = importlib.util.find_spec(name)
        if found is not None and found.origin is not None:
            yield f"{os.path.dirname(found.origin)}{os.sep}"


LIBRARIES = (*_folders(), contextlib.__file__)
"""Paths of library sources, which contain no model, in addition to this package's own folder."""

UNKNOWN = ("random_bits", "random_gamma", "rng_uniform", "rng_bit_generator", "threefry2x32")
"""JAX primitives that draw random numbers in a way that is not intercepted."""


class Recorder:
    """Records draws; when the program runs, `seen` receives the key and the probability of each draw."""

    def __init__(self, model: nnx.Module) -> None:
        self.sites: list[Site] = []
        self.seen: dict[int, list[tuple[bytes | None, float | None]]] = {}
        self.callbacks: list[Callable[..., Any]] = []
        self._around: list[Key] = []
        self._after = ""
        self._count: dict[Key, int] = {}
        self._holding = {
            ".".join(map(str, path))
            for path, module in nnx.iter_modules(model)
            if jax.tree.leaves(nnx.state(module, nnx.Not(nnx.RngState)))
        }

    def entered(self, key: Key, arrays: Any) -> None:
        self._around.append(key)

    def left(self, key: Key, arrays: Any) -> None:
        self._around.pop()
        if key[0] in self._holding:
            self._after = key[0]

    def numbers(self, law: Law, keep: Any, key_of: Callable[[], Any], shape: tuple[int, ...], *, silent: bool) -> Any:
        call = self._around[-1] if self._around else ("", 0)
        index = self._count.get(call, 0)
        self._count[call] = index + 1
        place, owner = len(self.sites), call[0]
        while owner and owner not in self._holding:
            owner = owner.rpartition(".")[0]
        site = Site(call, index, law, shape, owner, self._after, source_line(LIBRARIES), silent=silent)
        self.sites.append(site)
        key = key_of()
        data = jnp.zeros((), jnp.uint32) if key is None else jax.random.key_data(key)
        p = jnp.nan if keep is None else keep

        def saw(data: Any, p: Any) -> np.ndarray:
            """Note the keys, and probabilities, of one draw, or of all draws under `vmap` in their order."""
            data, p = np.asarray(data), np.asarray(p, np.float64)
            mapped = data.shape[: data.ndim - rank]
            rows = (x.reshape(math.prod(mapped), *x.shape[len(mapped) :]) for x in (data, p))
            for row, q in zip(*rows, strict=True):
                one = float(q.flat[0]) if q.size and (q == q.flat[0]).all() else None
                self.seen.setdefault(place, []).append((None if key is None else row.tobytes(), one))
            return np.zeros(mapped, np.int32)

        rank, result = jnp.ndim(data), jax.ShapeDtypeStruct((), np.int32)
        self.callbacks.append(saw)
        done = jax.pure_callback(saw, result, data, p, vmap_method="broadcast_all")
        jax.debug.callback(lambda done: None, done)  # so that it runs although nothing uses its result
        return nothing(law, keep, shape)


def jax_sites(side: JaxSide, arrays: Sequence[np.ndarray]) -> tuple[list[Site], list[str]]:
    """Return the draws of one forward pass, and source lines with unsupported random operations.

    The pass runs twice to detect keys that do not change. Only the dependencies of the draws are computed.
    """
    with side.switches(), jax.disable_jit(False):
        graphdef, state = nnx.split(side.model)
        recorders: list[Recorder] = []

        def run(state: nnx.State, inputs: Any) -> nnx.State:
            model = nnx.merge(graphdef, state)
            recorder = Recorder(model)
            recorders.append(recorder)
            with intercepted(recorder), call_hooks(model, recorder.entered, recorder.left):
                side.apply(model, inputs)
            return nnx.state(model, nnx.RngState)

        traced = jax.jit(run).trace(state, side.inputs(arrays))
        program, recorder = traced.lower().compile(), recorders[-1]
        seen = []
        for _ in range(2):
            recorder.seen.clear()
            moved = program(state, side.inputs(arrays))
            jax.effects_barrier()
            seen.append(dict(recorder.seen))
            nnx.update(side.model, moved)
            state = nnx.state(side.model)
    inside = set(_callbacks(traced.jaxpr))
    sites = [
        _completed(site, i, *seen) if id(recorder.callbacks[i]) in inside else _not_run(site)
        for i, site in enumerate(recorder.sites)
    ]
    return sites, sorted(set(_unknown(traced.jaxpr)))


def _callbacks(jaxpr: Any) -> Iterator[int]:
    """Yield the identities of the functions that a program calls back, also inside of its inner programs."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if equation.primitive.name == "pure_callback":
            yield id(equation.params["callback"].callback_func)
        for inner in jaxprs_in_params(equation.params):
            yield from _callbacks(inner)


def _not_run(site: Site) -> Site:
    """Return a site that was traced and is no part of the program: the model draws its numbers itself.

    Linen traces the initializers of its parameters for their shapes.
    """
    return dataclasses.replace(site, shape=(0,), constant=True)


def _completed(site: Site, place: int, first: Any, second: Any) -> Site:
    """Return the site with the keys and the probability observed in the two runs.

    Inside `jax.checkpoint`, JAX leaves out a call that no result depends on: nothing is observed there.
    """
    times, again = (seen.get(place, [(None, None)]) for seen in (first, second))
    key, p = times[0]
    keys = tuple(key.hex() for key, _ in times if key is not None)
    known = p is not None and not np.isnan(p) and all(other == p for _, other in times)
    return dataclasses.replace(
        site,
        law=dataclasses.replace(site.law, keep=p if known else None) if site.law.keep is None else site.law,
        state=None if key is None else key.hex(),
        constant=key is not None and key == again[0][0],
        # A key that is the same at every call yields the same numbers: one draw.
        keys=keys if len(set(keys)) > 1 else (),
    )


def _unknown(jaxpr: Any) -> Iterator[str]:
    """Yield the source lines of a program that draw random numbers by an unsupported primitive."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if equation.primitive.name in UNKNOWN:
            frames = equation.source_info.traceback.frames if equation.source_info.traceback else ()
            inner = next((f for f in frames if not f.file_name.startswith(("<", *LIBRARIES))), None)
            yield f"{os.path.basename(inner.file_name)}:{inner.line_num} ({inner.function_name})" if inner else "?"
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                if hasattr(getattr(part, "jaxpr", part), "eqns"):
                    yield from _unknown(part)
