"""What went first when a run diverged: the step that broke, run again with a look at every module and gradient.

A step shows nothing of its inside. So a diverged run is taken back to its last good state, the steps since are run
again as they were, with the same batches and keys, and the one that broke is traced once more while every module's
output and every gradient say whether they are finite.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from t2t_config.text import few
from t2t_jax.models.scan_blocks import unstack_arrays
from t2t_jax.state import Arrays
from t2t_jax.training.step import Batch, TrainState, observing

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


def explain(train_step: TrainStep, state: TrainState, batches: Iterator[Batch], *, done: int, broken: int) -> str:
    """Runs again from a good state to the step that broke; one line on what was the first not to be finite.

    Args:
        train_step: the run's step; it is traced anew, so whatever is compiled in this process is forgotten.
        state: after step `done`.
        batches: those of step `done` + 1 and the ones after.
        done: steps done in `state`.
        broken: the first step (from 1) whose loss or gradient was not finite.
    """
    for _ in range(done + 1, broken):
        state, _ = train_step(state, next(batches))
    batch = next(batches)
    before = [
        *_not_finite(unstack_arrays(state.raw)),
        *_not_finite({"images": batch["image"], "labels": batch["label"]}),
    ]
    seen = Findings()
    jax.clear_caches()
    with seen.recording():
        _, metrics = train_step(state, batch)
        jax.block_until_ready(metrics)
        jax.effects_barrier()
    jax.clear_caches()
    parts = [f"{few(before)} before the step"] if before else []
    parts += [seen.output] if seen.output else []
    parts += [seen.gradient] if seen.gradient and not seen.output else []
    since = f"steps {done + 1} to {broken}, run again from " + (
        f"the checkpoint of step {done}" if done else "the start"
    )
    if parts:
        return f"first not finite ({since}): {', then '.join(parts)}"
    broken_metrics = [name for name, value in jax.device_get(metrics).items() if not np.isfinite(value)]
    if broken_metrics:
        return f"all outputs and gradients are finite in {since}, but not {few(broken_metrics)}"
    return f"all was finite in {since}: memory or hardware may be at fault"


def _not_finite(arrays: Mapping[str, Any]) -> list[str]:
    """Names of the arrays that hold anything else than finite numbers."""
    finite = jax.jit(lambda arrays: {name: jnp.isfinite(array).all() for name, array in arrays.items()})(arrays)
    return [name for name in arrays if not finite[name]]


class Findings:
    """Which outputs and gradients of a step were not finite.

    Tracing numbers them in order; the step, as it runs, names the numbers of those that are not finite.
    """

    def __init__(self) -> None:
        self._modules: list[str] = []
        self._gradients: list[str] = []
        self._broken: set[tuple[str, int]] = set()

    @property
    def output(self) -> str | None:
        """The first module in the order of the forward pass, inner ones first, whose output is not finite."""
        found = [name for i, name in enumerate(self._modules) if ("output", i) in self._broken]
        return f"the output of {found[0] or 'the model'}" if found else None

    @property
    def gradient(self) -> str | None:
        """The first gradient that is not finite, in the order of the backward pass: of the last module used."""
        found = [name for i, name in enumerate(self._gradients) if ("gradient", i) in self._broken]
        use = {name: i for i, name in enumerate(self._modules)}
        found.sort(key=lambda name: -use.get(name.rpartition(".")[0], len(use)))
        return f"the gradient of {found[0]} ({len(found)} in all)" if found else None

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """While open, a training step that is traced is looked into."""
        with _calls(self._note_output), observing(self._note_gradients):
            yield

    def _note(self, kind: str, index: int, arrays: list[jax.Array]) -> None:
        def seen(finite: Any) -> None:
            if not finite:
                self._broken.add((kind, index))

        jax.debug.callback(seen, functools.reduce(jnp.logical_and, [jnp.isfinite(x).all() for x in arrays]))

    def _note_output(self, name: str, output: Any) -> None:
        arrays = [
            leaf
            for leaf in jax.tree.leaves(output, is_leaf=lambda leaf: isinstance(leaf, nnx.Pytree | nnx.Variable))
            if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating)
        ]
        if arrays:
            self._modules.append(name)
            self._note("output", len(self._modules) - 1, arrays)

    def _note_gradients(self, gradients: Arrays) -> None:
        for name, gradient in gradients.items():
            self._gradients.append(name)
            self._note("gradient", len(self._gradients) - 1, [gradient])


@contextlib.contextmanager
def _calls(note: Callable[[str, Any], None]) -> Iterator[None]:
    """While open, every call of a module tells `note` its path and its output, inner calls before outer ones.

    Paths begin at the module that is called from outside any other.
    """
    names: dict[int, str] = {}
    active: list[int] = []

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not active:
                names.clear()
                names.update((id(module), ".".join(map(str, path))) for path, module in nnx.iter_modules(self))
            # A subclass that calls super().__call__ is one call, not two.
            if id(self) not in names or id(self) in active:
                return original(self, *args, **kwargs)
            active.append(id(self))
            try:
                output = original(self, *args, **kwargs)
            finally:
                active.remove(id(self))
            note(names[id(self)], output)
            return output

        return call

    originals = {cls: vars(cls)["__call__"] for cls in _subclasses(nnx.Pytree) if "__call__" in vars(cls)}
    try:
        for cls, original in originals.items():
            setattr(cls, "__call__", wrap(original))  # noqa: B010  (mypy refuses to assign a method)
        yield
    finally:
        for cls, original in originals.items():
            setattr(cls, "__call__", original)  # noqa: B010


def _subclasses(cls: Any) -> set[type]:
    found: set[type] = {cls}
    for subclass in cls.__subclasses__():
        found |= _subclasses(subclass)
    return found
