"""Find the first non-finite module output or gradient of a diverged run by repeating the failed step.

A compiled step does not expose its intermediate values. Therefore a diverged run is restored to its last good state,
the steps since are repeated with the same batches and keys, and the failed step is traced again with a check for
non-finite values on every module output and every gradient.
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
from t2t_jax.training.step import Batch, TrainState, TrainStep

Inspected = Callable[[Callable[[Arrays], None]], TrainStep]
"""(function to call with the gradients while it is traced) -> a training step."""


def explain(
    train_step: TrainStep,
    inspectable_step: Inspected,
    state: TrainState,
    batches: Iterator[Batch],
    *,
    done: int,
    broken: int,
) -> str:
    """Repeat the steps from a good state to the failed one; return a line that names the first non-finite values.

    Args:
        train_step: Training step of the run.
        inspectable_step: Makes the step that computes the same and is inspected while it is traced.
        state: State after step `done`.
        batches: Batches from step `done` + 1 on.
        done: Number of steps completed in `state`.
        broken: First step (from 1) whose loss or gradient was not finite.
    """
    for _ in range(done + 1, broken):
        state, _ = train_step(state, next(batches))
    batch = next(batches)
    before = [
        *_not_finite(unstack_arrays(state.raw)),
        *_not_finite({"images": batch["image"], "labels": batch["label"]}),
    ]
    seen = Findings()
    with _calls(seen.note_output):
        _, metrics = inspectable_step(seen.note_gradients)(state, batch)
        jax.block_until_ready(metrics)
        jax.effects_barrier()
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
    """Return the names of the arrays with non-finite values."""
    finite = jax.jit(lambda arrays: {name: jnp.isfinite(array).all() for name, array in arrays.items()})(arrays)
    return [name for name in arrays if not finite[name]]


class Findings:
    """Record which outputs and gradients of a step are not finite.

    Tracing numbers them in order; at run time, callbacks record the numbers of the non-finite ones.
    """

    def __init__(self) -> None:
        self._modules: list[str] = []
        self._gradients: list[str] = []
        self._broken: set[tuple[str, int]] = set()

    @property
    def output(self) -> str | None:
        """First module with a non-finite output in forward order, inner modules before outer ones."""
        found = [name for i, name in enumerate(self._modules) if ("output", i) in self._broken]
        return f"the output of {found[0] or 'the model'}" if found else None

    @property
    def gradient(self) -> str | None:
        """First non-finite gradient in backward order: that of the last module used in the forward pass."""
        found = [name for i, name in enumerate(self._gradients) if ("gradient", i) in self._broken]
        use = {name: i for i, name in enumerate(self._modules)}
        found.sort(key=lambda name: -use.get(name.rpartition(".")[0], len(use)))
        return f"the gradient of {found[0]} ({len(found)} in all)" if found else None

    def _note(self, kind: str, index: int, arrays: list[jax.Array]) -> None:
        def seen(finite: Any) -> None:
            if not finite:
                self._broken.add((kind, index))

        jax.debug.callback(seen, functools.reduce(jnp.logical_and, [jnp.isfinite(x).all() for x in arrays]))

    def note_output(self, name: str, output: Any) -> None:
        """Check the output of a module, by its path, while the step is traced."""
        arrays = [
            leaf
            for leaf in jax.tree.leaves(output, is_leaf=lambda leaf: isinstance(leaf, nnx.Pytree | nnx.Variable))
            if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating)
        ]
        if arrays:
            self._modules.append(name)
            self._note("output", len(self._modules) - 1, arrays)

    def note_gradients(self, gradients: Arrays) -> None:
        """Check the gradients, by name, while the step is traced."""
        for name, gradient in gradients.items():
            self._gradients.append(name)
            self._note("gradient", len(self._gradients) - 1, [gradient])


@contextlib.contextmanager
def _calls(note: Callable[[str, Any], None]) -> Iterator[None]:
    """While open, call `note` with path and output of every module call, inner calls before outer ones.

    Paths are relative to the outermost called module.
    """
    names: dict[int, str] = {}
    active: list[int] = []

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not active:
                names.clear()
                names.update((id(module), ".".join(map(str, path))) for path, module in nnx.iter_modules(self))
            # Count a subclass that calls super().__call__ once.
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
