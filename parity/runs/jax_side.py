"""Runs of a flax model in one precision: forward with the calls of every module, and gradients.

JAX runs compiled, as in normal use; see `parity.runs.compiled_blocks`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from parity.carry.convert import Ledger, as_dtype, torch_arrays
from parity.carry.dtypes import in_precision
from parity.precision.by_design import Design
from parity.precision.wide_jax import noting, widened
from parity.random_draws.jax_draws import handed_out
from parity.random_draws.jax_draws import in_precision as draws_in_precision
from parity.random_draws.matching import Handed
from parity.recording.capture import (
    Call,
    Calls,
    Key,
    OtherTypeError,
)
from parity.recording.channels import Axes
from parity.recording.inputs import Apply, positional
from parity.recording.structure import Form, form, tensors, with_tensors
from parity.recording.transformations import jax_calls
from parity.runs.compiled_blocks import (
    CompiledBlocks,
    SeparationError,
    block_names,
    compiler_options,
    dotted,
    jax_calls_in_blocks,
    start_compiling,
)
from parity.runs.instrumented import altered_in_blocks
from parity.runs.losses import Loss
from parity.runs.memory import release, trim
from parity.runs.numpy_constants import convert_by_precision
from parity.runs.torch_side import Arrays, Gradients, to_arrays

Run = Callable[[bool], Arrays]
"""A forward pass: free (False) or forced (True)."""


@dataclasses.dataclass
class JaxSide:
    """A copy of the flax model in one precision. `input_axes` permute PyTorch's inputs to JAX's."""

    model: nnx.Module
    precision: str
    input_axes: Sequence[Axes]
    apply: Apply = positional
    design: Design | None = None

    @classmethod
    def of(
        cls,
        model: nnx.Module,
        precision: str,
        axes: Sequence[Axes],
        *,
        training: bool = False,
        apply: Apply = positional,
        design: Design | None = None,
    ) -> JaxSide:
        with jax.enable_x64(precision == "float64"):
            jax_copy = as_dtype(model, jnp.dtype(precision))
        jax_copy.train() if training else jax_copy.eval()
        return cls(jax_copy, precision, axes, apply, design=design)

    @property
    def widens(self) -> bool:
        """Whether casts are removed; the model then runs as one program."""
        return self.design is not None and self.design.theirs_widen(self.precision)

    @classmethod
    def as_configured(
        cls, model: nnx.Module, precision: str, axes: Sequence[Axes], apply: Apply = positional
    ) -> JaxSide:
        """Use the dtypes that the model computes in; inputs are in `precision`."""
        jax_copy = nnx.clone(model)
        jax_copy.eval()
        return cls(jax_copy, precision, axes, apply)

    def inputs(self, arrays: Sequence[np.ndarray]) -> tuple[jax.Array, ...]:
        aligned = (x if axes is None else x.transpose(axes) for x, axes in zip(arrays, self.input_axes, strict=True))
        return tuple(self._array(x) for x in aligned)

    def _array(self, array: np.ndarray) -> jax.Array:
        return jnp.asarray(array.astype(self._dtype(array), copy=False))

    def _dtype(self, array: np.ndarray | jax.ShapeDtypeStruct) -> np.dtype:
        """Return this run's dtype for an array: its precision if floating or complex; integers keep theirs."""
        moving = np.issubdtype(array.dtype, np.inexact)
        return jax.dtypes.canonicalize_dtype(in_precision(array.dtype, self.precision) if moving else array.dtype)

    def forward(
        self,
        arrays: Sequence[np.ndarray],
        reference: Arrays | None = None,
        *,
        only: Collection[Key] | None = None,
        draws: Handed | None = None,
    ) -> Arrays:
        """Return the calls; forced if `reference` (JAX's layout) is given. `draws`: values of the random draws."""
        with self.switches():
            graphdef, state = nnx.split(self.model)

            def run(state: nnx.State, inputs: Any, known: Calls, draws: Any) -> Calls:
                model = nnx.merge(graphdef, state)
                with handed_out(model, draws):
                    return jax_calls(model, inputs, known, only=only, apply=self.apply)

            given = self.inputs(arrays), self._calls(reference or {}), self._drawn(draws)
            return to_arrays(self.run(run, state, *given))

    def _drawn(self, draws: Handed | None) -> Any:
        return None if draws is None else draws_in_precision(draws, self.precision)

    def both(
        self, pool: Executor, arrays: Sequence[np.ndarray], reference: Arrays, *, only: Collection[Key] | None = None
    ) -> Run:
        """Return the free and the forced run of the same calls, compiled in the background.

        One program that selects at run time between its own tensors and the reference's takes half the time of two.
        If a tensor has another type than the reference's, the selection would change the free run; then there are two.
        """
        if self.widens or jax.config.jax_disable_jit:  # type: ignore[attr-defined]
            return lambda forced: self.forward(arrays, reference if forced else None, only=only)
        keys = reference.keys() if only is None else only
        with self.switches():
            graphdef, state = nnx.split(self.model)
            inputs, shapes = self.inputs(arrays), {key: self._abstract(call) for key, call in reference.items()}

            def run(blocks: CompiledBlocks, state: nnx.State, inputs: Any, known: Calls, forced: bool | None) -> Calls:
                model = nnx.merge(graphdef, state)
                return jax_calls_in_blocks(blocks, model, inputs, known, only=keys, forced=forced, apply=self.apply)

            def start(known: Calls, forced: bool | None) -> CompiledBlocks:
                function = functools.partial(run, forced=forced)
                try:
                    return start_compiling(block_names(self.model), pool, function, state, inputs, known)
                except SeparationError:
                    return start_compiling({""}, pool, function, state, inputs, known)

            try:
                both = start(shapes, True)
                programs: dict[bool, tuple[CompiledBlocks, Arrays, bool | None]]
                programs = {True: (both, reference, True), False: (both, reference, False)}
            except OtherTypeError:
                programs = {True: (start(shapes, None), reference, None), False: (start({}, None), {}, None)}

        def finish(forced: bool) -> Arrays:
            blocks, reference, told = programs[forced]
            blocks.ready()
            trim()  # the memory used for compiling
            with self.switches():
                return to_arrays(run(blocks, state, inputs, self._calls(reference), told))

        return finish

    def _abstract(self, call: Call) -> Call:
        def shapes(arrays: Sequence[np.ndarray]) -> list[Any]:
            return [jax.ShapeDtypeStruct(x.shape, self._dtype(x)) for x in arrays]

        return Call(None if call.inputs is None else shapes(call.inputs), shapes(call.outputs))

    def updated(self, arrays: Sequence[np.ndarray], draws: Handed | None = None) -> dict[str, np.ndarray]:
        """Return all variables after one run, by dotted name, except generator state.

        In training mode the running statistics change. `draws`: values of the random draws.
        """
        with self.switches():
            graphdef, state = nnx.split(self.model)

            def run(state: nnx.State, inputs: tuple[jax.Array, ...], draws: Any) -> nnx.State:
                model = nnx.merge(graphdef, state)
                with handed_out(model, draws):
                    self.apply(model, inputs)
                return nnx.state(model, nnx.Not(nnx.RngState))

            found = self.run(run, state, self.inputs(arrays), self._drawn(draws))
        return {dotted(path): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(found)}

    def written(self, arrays: Sequence[np.ndarray], draws: Handed | None = None) -> set[str]:
        """Return the names of the variables that one run writes, except generator state; nothing is computed.

        A transformation such as `nnx.remat` writes back all of its inputs, changed or not.
        """
        found = set[str]()
        with self.switches(), jax.disable_jit(False):
            graphdef, state = nnx.split(self.model)

            def run(state: nnx.State, inputs: Any, draws: Any) -> None:
                model = nnx.merge(graphdef, state)

                def values() -> dict[str, Any]:
                    flat = nnx.to_flat_state(nnx.state(model, nnx.Not(nnx.RngState)))
                    return {dotted(path): leaf.get_value() for path, leaf in flat}

                before = values()
                with handed_out(model, draws):
                    self.apply(model, inputs)
                found.update(name for name, value in values().items() if value is not before.get(name))

            jax.eval_shape(run, state, self.inputs(arrays), self._drawn(draws))
        return found

    def shapes(self, arrays: Sequence[np.ndarray]) -> tuple[Calls, dict[Key, Form]]:
        """Return the calls with shapes in place of arrays, and the structure of each output; nothing is computed."""
        forms: dict[Key, Form] = {}
        with self.switches(), jax.disable_jit(False):
            graphdef, state = nnx.split(self.model)

            def run(state: nnx.State, inputs: Any) -> Calls:
                model = nnx.merge(graphdef, state)
                return jax_calls(model, inputs, apply=self.apply, returned=lambda k, x: forms.update({k: form(x)}))

            return jax.eval_shape(run, state, self.inputs(arrays)), forms

    def program(self, arrays: Sequence[np.ndarray]) -> tuple[Any, list[jax.Array], set[float]]:
        """Return the traced jaxpr of the model, the arrays it was traced with, and the Python numbers in it."""
        with self.switches(), jax.disable_jit(False):
            graphdef, state = nnx.split(self.model)

            def run(state: nnx.State, inputs: Any) -> Calls:
                return jax_calls(nnx.merge(graphdef, state), inputs, apply=self.apply)

            arguments, numbers = (state, self.inputs(arrays)), set[float]()
            with noting(numbers):
                program = jax.make_jaxpr(run)(*arguments)
            return program, jax.tree.leaves(arguments), numbers

    def _calls(self, reference: Arrays) -> Calls:
        """Convert the reference to this run's precision and transfer it at once, several times as fast as one by one.

        Tensors passed from one call to another share memory and are transferred once.
        """
        leaves, tree = jax.tree.flatten(reference)
        places = [(x.__array_interface__["data"], x.shape, x.strides, x.dtype.str) for x in leaves]
        different = dict(zip(places, leaves, strict=True))
        moved = jax.device_put([x.astype(self._dtype(x), copy=False) for x in different.values()])
        found = dict(zip(different, moved, strict=True))
        return jax.tree.unflatten(tree, [found[place] for place in places])

    def gradients(
        self,
        arrays: Sequence[np.ndarray],
        loss: Loss,
        ledger: Ledger,
        trained: Collection[str],
        *,
        draws: Handed | None = None,
        activations: Mapping[Key, Sequence[tuple[int, ...] | jax.ShapeDtypeStruct]] | None = None,
    ) -> Gradients:
        """Compute gradients as `TorchSide.gradients` does, for the parameters in `trained` (PyTorch's names).

        `activations` gives the shapes of the outputs to differentiate by (with the dtype, if complex): a zero is added
        to each of them, and the gradient of that zero is that of the output. The model's arrays are donated to save
        memory, so it runs once.
        """
        entries = {entry.jax for entry in ledger if entry.torch in trained}
        with self.switches():
            inputs = self.inputs(arrays)
            floating = [i for i, x in enumerate(inputs) if jnp.issubdtype(x.dtype, jnp.inexact)]
            parts: Any = nnx.split(self.model, lambda path, _: dotted(path) in entries, ...)
            graphdef, state, rest = parts
            zeros = {
                key: [
                    np.zeros(x, self.precision) if isinstance(x, tuple) else np.zeros(x.shape, self._dtype(x))
                    for x in shapes
                ]
                for key, shapes in (activations or {}).items()
            }
            drawn = self._drawn(draws)

            def scalar(
                blocks: CompiledBlocks | None, state: nnx.State, moving: list[jax.Array], zeros: Any, rest: nnx.State
            ) -> jax.Array:
                moved = list(inputs)
                for i, x in zip(floating, moving, strict=True):
                    moved[i] = x
                # New variables at this level of tracing: running statistics are written in training mode.
                model = nnx.merge(graphdef, state, jax.tree.map(lambda x: x, rest))
                output = altered_in_blocks(blocks, model, moved, (drawn, zeros), self.apply)
                # Pass the tensors only: an output may contain types that jit does not accept.
                return jax.jit(lambda new: loss.jax(with_tensors(output, new)))(tensors(output))

            arguments = state, [inputs[i] for i in floating], zeros, rest
            value, (params, input_grads, seen) = self._value_and_grad(scalar, arguments)
        named = {dotted(path): np.asarray(grad[...]).conj() for path, grad in nnx.to_flat_state(params)}
        return Gradients(
            float(value),
            torch_arrays(ledger, named, gradients=True),
            [_back(np.asarray(g).conj(), self.input_axes[i]) for i, g in zip(floating, input_grads, strict=True)],
            {key: [np.asarray(g).conj() for g in found] for key, found in seen.items()},
        )

    def _value_and_grad(self, scalar: Callable[..., jax.Array], arguments: tuple[Any, ...]) -> Any:
        """Return value and gradients of `scalar(blocks, *arguments)` by all but the last argument; in blocks if any."""

        def gradient(blocks: CompiledBlocks | None) -> Callable[..., Any]:
            return jax.value_and_grad(functools.partial(scalar, blocks), argnums=(0, 1, 2))

        names = {""} if self.widens else block_names(self.model)
        if names != {""} and not jax.config.jax_disable_jit:  # type: ignore[attr-defined]
            with contextlib.suppress(SeparationError), ThreadPoolExecutor(2) as pool:
                blocks = start_compiling(names, pool, scalar, *arguments, gradients=True)
                blocks.ready()
                release()
                return gradient(blocks)(*arguments)
        return self.run(gradient(None), *arguments, donate_argnums=0)

    def switches(self) -> Any:
        """Enable 64-bit types only for float64, so that a float32 run cannot use them; matmuls in full precision."""
        convert_by_precision()
        stack = contextlib.ExitStack()
        stack.enter_context(jax.enable_x64(self.precision == "float64"))
        stack.enter_context(jax.default_matmul_precision("highest"))
        return stack

    def run(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Compile `function`, release the compiler's memory and run it once; not compiled under `disable_jit`."""
        if self.widens and self.design is not None:
            function = widened(function, self.precision, self.design.allows, self.design.scalars)
        elif jax.config.jax_disable_jit:  # type: ignore[attr-defined]
            return function(*args)
        with jax.disable_jit(False):
            compiled = jax.jit(function, **options).lower(*args).compile(compiler_options(self.model))
            release()
            return compiled(*args)


def _back(array: np.ndarray, axes: Axes) -> np.ndarray:
    return array if axes is None else array.transpose(np.argsort(axes))
