"""Runs of both models in one precision: forward with every module's calls, and gradients.

JAX runs compiled, as it is used; see pieces.py.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from parity.align import Axes
from parity.altered import Masks, altered_in_pieces
from parity.capture import (
    Call,
    Calls,
    InPlaceError,
    Key,
    OtherTypeError,
    jax_calls,
    jax_hooks,
    torch_calls,
    torch_hooks,
)
from parity.convert import Ledger, as_dtype, to_numpy, torch_arrays
from parity.dtypes import as_xla_rounds, in_precision, torch_in_precision
from parity.losses import Loss
from parity.memory import release, trim
from parity.pieces import (
    Pieces,
    UnfitError,
    begin,
    compiler_options,
    dotted,
    jax_calls_in_pieces,
    piece_names,
)
from parity.structure import tensors, with_tensors

Arrays = dict[Key, Call]
"""Calls with numpy arrays for tensors."""

Run = Callable[[bool], Arrays]
"""A forward pass: free, or (True) forced."""


@dataclasses.dataclass(frozen=True)
class Gradients:
    """A loss and its gradients; parameters and inputs in PyTorch's names and layouts, outputs of calls in each own.

    By complex numbers: dL/dRe + i dL/dIm, as in PyTorch (JAX's are the conjugates of these).

    `outputs` are the model's own and the loss' gradients by them, PyTorch's alone.
    """

    loss: float
    params: dict[str, np.ndarray]
    inputs: list[np.ndarray]
    activations: dict[Key, list[np.ndarray]]
    outputs: list[tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class TorchSide:
    """A copy of the PyTorch model in one precision."""

    model: torch.nn.Module
    precision: str
    in_place: bool = False
    """Whether the model changes activations in place; found out by the first free run."""

    @classmethod
    def of(cls, model: torch.nn.Module, precision: str, *, training: bool = False) -> TorchSide:
        moved = copy.deepcopy(model)._apply(lambda x: torch_in_precision(x, getattr(torch, precision)))
        return cls(moved.train(training), precision)

    def inputs(self, arrays: Sequence[np.ndarray]) -> tuple[torch.Tensor, ...]:
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        dtype = getattr(torch, self.precision)
        return tuple(torch_in_precision(torch.from_numpy(np.array(x)).to(device), dtype) for x in arrays)

    def forward(
        self, arrays: Sequence[np.ndarray], reference: Arrays | None = None, *, only: Collection[Key] | None = None
    ) -> Arrays:
        """The calls; forced if `reference` (PyTorch's layout) is given."""
        with self._rounding():
            return self._forward(self.inputs(arrays), reference, only)

    def _rounding(self) -> contextlib.AbstractContextManager[None]:
        return as_xla_rounds() if self.precision == "float32" else contextlib.nullcontext()

    def _forward(
        self, inputs: tuple[torch.Tensor, ...], reference: Arrays | None, only: Collection[Key] | None
    ) -> Arrays:
        if reference is None and not self.in_place:
            try:
                return _to_numpy(torch_calls(self.model, inputs, copies=False, only=only))
            except InPlaceError:
                self.in_place = True
        known = reference and {key: self._call(call) for key, call in reference.items()}
        return _to_numpy(torch_calls(self.model, inputs, known, copies=self.in_place, only=only))

    def _call(self, call: Call) -> Call:
        inputs = None if call.inputs is None else list(self.inputs(call.inputs))
        return Call(inputs, list(self.inputs(call.outputs)))

    def gradients(
        self,
        arrays: Sequence[np.ndarray],
        loss: Loss,
        *,
        masks: Masks | None = None,
        activations: Collection[Key] = (),
    ) -> Gradients:
        """Loss and gradients of parameters, inputs, and the (floating) outputs of the calls in `activations`.

        Raises:
            ValueError: the loss depends on nothing that has a gradient.
        """
        with self._rounding():
            return self._gradients(self.inputs(arrays), loss, masks, activations)

    def _gradients(
        self, given: tuple[torch.Tensor, ...], loss: Loss, masks: Masks | None, activations: Collection[Key]
    ) -> Gradients:
        for x in given:
            x.requires_grad_(x.is_floating_point() or x.is_complex())
        grads: dict[Key, list[torch.Tensor]] = {}

        def after(key: Key, outputs: list[torch.Tensor]) -> list[torch.Tensor] | None:
            if masks and key in masks:
                outputs = [x * torch.from_numpy(masks[key]).to(x) for x in outputs]
            if key in activations:
                # A copy: a module that hands its input through would share its tensor's other uses, and one that
                # works in place would take the tensor's history over.
                outputs = [x.clone().requires_grad_() for x in outputs]
                grads[key] = [x.detach().new_zeros(()).expand(x.shape) for x in outputs]  # of what is not used
                for i, x in enumerate(outputs):
                    x.register_hook(lambda g, key=key, i=i: grads[key].__setitem__(i, g.detach()))
            return outputs

        self.model.zero_grad()
        with torch_hooks(self.model, lambda key, tensors: None, after):
            output = self.model(*given)
            moving = {id(x): x for x in tensors(output) if x.requires_grad}
            for x in moving.values():
                x.retain_grad()
            value = loss.torch(output)
        if not value.requires_grad:
            raise ValueError('the loss depends on no parameter and no floating input: use level="forward"')
        value.backward()
        params = {name: _gradient(param) for name, param in self.model.named_parameters() if param.requires_grad}
        seen = {key: [to_numpy(g) for g in found] for key, found in grads.items()}
        by_inputs = [_gradient(x) for x in given if x.requires_grad]
        outputs = [(to_numpy(x), _gradient(x)) for x in moving.values()]
        return Gradients(float(value.detach()), params, by_inputs, seen, outputs)


def _gradient(tensor: torch.Tensor) -> np.ndarray:
    return to_numpy(torch.zeros_like(tensor) if tensor.grad is None else tensor.grad)


@dataclasses.dataclass
class JaxSide:
    """A copy of the flax model in one precision. `input_axes` turn PyTorch's inputs into its own."""

    model: nnx.Module
    precision: str
    input_axes: Sequence[Axes]

    @classmethod
    def of(cls, model: nnx.Module, precision: str, axes: Sequence[Axes], *, training: bool = False) -> JaxSide:
        with jax.enable_x64(precision == "float64"):
            jax_copy = as_dtype(model, jnp.dtype(precision))
        jax_copy.train() if training else jax_copy.eval()
        return cls(jax_copy, precision, axes)

    def inputs(self, arrays: Sequence[np.ndarray]) -> tuple[jax.Array, ...]:
        aligned = (x if axes is None else x.transpose(axes) for x, axes in zip(arrays, self.input_axes, strict=True))
        return tuple(self._array(x) for x in aligned)

    def _array(self, array: np.ndarray) -> jax.Array:
        return jnp.asarray(array.astype(self._dtype(array), copy=False))

    def _dtype(self, array: np.ndarray | jax.ShapeDtypeStruct) -> np.dtype:
        """This run's precision for floating and complex arrays; integers as they are."""
        moving = np.issubdtype(array.dtype, np.inexact)
        return jax.dtypes.canonicalize_dtype(in_precision(array.dtype, self.precision) if moving else array.dtype)

    def forward(
        self, arrays: Sequence[np.ndarray], reference: Arrays | None = None, *, only: Collection[Key] | None = None
    ) -> Arrays:
        """The calls; forced if `reference` (JAX's layout) is given."""
        with self.switches():
            graphdef, state = nnx.split(self.model)

            def run(state: nnx.State, inputs: Any, known: Calls) -> Calls:
                return jax_calls(nnx.merge(graphdef, state), inputs, known, only=only)

            return _to_numpy(self.run(run, state, self.inputs(arrays), self._calls(reference or {})))

    def both(
        self, pool: Executor, arrays: Sequence[np.ndarray], reference: Arrays, *, only: Collection[Key] | None = None
    ) -> Run:
        """The free and the forced run of the same calls, compiled in the background.

        Programs that pass on their own tensors or the reference's, as they are told, take half the time of two. Where
        a tensor is of another type than the reference's, passing on either would change the free run: then it is two.
        """
        if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
            return lambda forced: self.forward(arrays, reference if forced else None, only=only)
        keys = reference.keys() if only is None else only
        with self.switches():
            graphdef, state = nnx.split(self.model)
            inputs, shapes = self.inputs(arrays), {key: self._abstract(call) for key, call in reference.items()}

            def run(pieces: Pieces, state: nnx.State, inputs: Any, known: Calls, forced: bool | None) -> Calls:
                model = nnx.merge(graphdef, state)
                return jax_calls_in_pieces(pieces, model, inputs, known, only=keys, forced=forced)

            def start(known: Calls, forced: bool | None) -> Pieces:
                function = functools.partial(run, forced=forced)
                try:
                    return begin(piece_names(self.model), pool, function, state, inputs, known)
                except UnfitError:
                    return begin({""}, pool, function, state, inputs, known)

            try:
                both = start(shapes, True)
                programs: dict[bool, tuple[Pieces, Arrays, bool | None]]
                programs = {True: (both, reference, True), False: (both, reference, False)}
            except OtherTypeError:
                programs = {True: (start(shapes, None), reference, None), False: (start({}, None), {}, None)}

        def finish(forced: bool) -> Arrays:
            pieces, reference, told = programs[forced]
            pieces.ready()
            trim()  # what compiling took
            with self.switches():
                return _to_numpy(run(pieces, state, inputs, self._calls(reference), told))

        return finish

    def _abstract(self, call: Call) -> Call:
        def shapes(arrays: Sequence[np.ndarray]) -> list[Any]:
            return [jax.ShapeDtypeStruct(x.shape, self._dtype(x)) for x in arrays]

        return Call(None if call.inputs is None else shapes(call.inputs), shapes(call.outputs))

    def updated(self, arrays: Sequence[np.ndarray], masks: Masks) -> dict[str, np.ndarray]:
        """Every variable after one run, by dotted name: running statistics change in training mode."""

        def after(key: Key, outputs: list[jax.Array]) -> list[jax.Array] | None:
            return [x * jnp.asarray(masks[key], x.dtype) for x in outputs] if key in masks else None

        with self.switches():
            graphdef, state = nnx.split(self.model)

            def run(state: nnx.State, inputs: tuple[jax.Array, ...]) -> nnx.State:
                model = nnx.merge(graphdef, state)
                with jax_hooks(model, lambda key, arrays: None, after):
                    model(*inputs)
                return nnx.state(model)

            found = self.run(run, state, self.inputs(arrays))
        return {dotted(path): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(found)}

    def shapes(self, arrays: Sequence[np.ndarray]) -> Calls:
        """The calls with shapes for arrays; nothing is computed."""
        with self.switches():
            graphdef, state = nnx.split(self.model)
            inputs = self.inputs(arrays)
            return jax.eval_shape(lambda state, inputs: jax_calls(nnx.merge(graphdef, state), inputs), state, inputs)

    def _calls(self, reference: Arrays) -> Calls:
        """In this run's precision, all brought over at once: one by one they take several times as long.

        What one call hands to another is the same memory twice: it is brought over once.
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
        masks: Masks | None = None,
        activations: Mapping[Key, Sequence[tuple[int, ...] | jax.ShapeDtypeStruct]] | None = None,
    ) -> Gradients:
        """As `TorchSide.gradients`, for the parameters in `trained` (PyTorch's names).

        `activations` gives the shapes of the outputs in question (with the type, where they are complex): to each of
        them a zero is added, and the gradient of that zero is the output's. The model's own arrays are used up to save
        memory: it runs once.
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

            def scalar(
                pieces: Pieces | None, state: nnx.State, moving: list[jax.Array], zeros: Any, rest: nnx.State
            ) -> jax.Array:
                moved = list(inputs)
                for i, x in zip(floating, moving, strict=True):
                    moved[i] = x
                # Variables made anew at this level of tracing: running statistics are written in training mode.
                model = nnx.merge(graphdef, state, jax.tree.map(lambda x: x, rest))
                output = altered_in_pieces(pieces, model, moved, (masks or {}, zeros))
                # By its tensors: an output may hold what jit does not take.
                return jax.jit(lambda new: loss.jax(with_tensors(output, new)))(tensors(output))

            arguments = state, [inputs[i] for i in floating], zeros, rest
            value, (params, input_grads, seen) = self._value_and_grad(scalar, arguments)
        named = {dotted(path): np.asarray(grad[...]).conj() for path, grad in nnx.to_flat_state(params)}
        return Gradients(
            float(value),
            torch_arrays(ledger, named),
            [_back(np.asarray(g).conj(), self.input_axes[i]) for i, g in zip(floating, input_grads, strict=True)],
            {key: [np.asarray(g).conj() for g in found] for key, found in seen.items()},
        )

    def _value_and_grad(self, scalar: Callable[..., jax.Array], arguments: tuple[Any, ...]) -> Any:
        """Of `scalar(pieces, *arguments)`, by the arguments but the last; in pieces where there are any."""

        def gradient(pieces: Pieces | None) -> Callable[..., Any]:
            return jax.value_and_grad(functools.partial(scalar, pieces), argnums=(0, 1, 2))

        names = piece_names(self.model)
        if names != {""} and not jax.config.jax_disable_jit:  # type: ignore[attr-defined]
            with contextlib.suppress(UnfitError), ThreadPoolExecutor(2) as pool:
                pieces = begin(names, pool, scalar, *arguments, gradients=True)
                pieces.ready()
                release()
                return gradient(pieces)(*arguments)
        return self.run(gradient(None), *arguments, donate_argnums=0)

    def switches(self) -> Any:
        """64-bit types only for float64, so that a float32 run cannot lean on them; matrix products left whole."""
        stack = contextlib.ExitStack()
        stack.enter_context(jax.enable_x64(self.precision == "float64"))
        stack.enter_context(jax.default_matmul_precision("highest"))
        return stack

    def run(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """`function` compiled and run once; what compiling took is given back before. As it is under `disable_jit`."""
        if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
            return function(*args)
        compiled = jax.jit(function, **options).lower(*args).compile(compiler_options(self.model))
        release()
        return compiled(*args)


def _back(array: np.ndarray, axes: Axes) -> np.ndarray:
    return array if axes is None else array.transpose(np.argsort(axes))


def _to_numpy(calls: Calls) -> Arrays:
    return {
        key: Call([to_numpy(x) for x in call.inputs or []], [to_numpy(x) for x in call.outputs])
        for key, call in calls.items()
    }
