"""Runs of both models: forward with every module's calls, and gradients, in one precision.

JAX runs compiled, as it is used; float64 with XLA's optimiser off, which changes no digit that the gates see and
halves the time to compile.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from parity.align import Axes
from parity.capture import Call, Calls, InPlaceError, Key, jax_calls, torch_calls
from parity.convert import Ledger, as_dtype, to_numpy
from parity.losses import Loss

Arrays = dict[Key, Call]
"""Calls with numpy arrays for tensors."""


@dataclasses.dataclass(frozen=True)
class Gradients:
    """A loss and its gradients in PyTorch's names and layouts; `inputs` one per input."""

    loss: float
    params: dict[str, np.ndarray]
    inputs: list[np.ndarray]


@dataclasses.dataclass
class Models:
    """Both models in one precision, in evaluation mode: copies, so that the user's own stay as they are."""

    torch: torch.nn.Module
    jax: nnx.Module
    precision: str
    input_axes: tuple[Axes, ...]
    in_place: bool = False
    """Whether PyTorch's model changes activations in place; found out by the first free run."""

    @classmethod
    def of(cls, torch_model: torch.nn.Module, jax_model: nnx.Module, precision: str, axes: tuple[Axes, ...]) -> Models:
        torch_copy = copy.deepcopy(torch_model).to(dtype=getattr(torch, precision)).eval()
        with jax.enable_x64(precision == "float64"):
            jax_copy = as_dtype(jax_model, jnp.dtype(precision))
            jax_copy.eval()
        return cls(torch_copy, jax_copy, precision, axes)

    def torch_inputs(self, inputs: tuple[np.ndarray, ...]) -> tuple[torch.Tensor, ...]:
        device = next((p.device for p in self.torch.parameters()), torch.device("cpu"))
        return tuple(torch.from_numpy(self._cast(x)).to(device) for x in inputs)

    def jax_inputs(self, inputs: tuple[np.ndarray, ...]) -> tuple[jax.Array, ...]:
        aligned = (x if axes is None else x.transpose(axes) for x, axes in zip(inputs, self.input_axes, strict=True))
        return tuple(jnp.asarray(self._cast(x)) for x in aligned)

    def _cast(self, array: np.ndarray) -> np.ndarray:
        """Floating arrays in this run's precision; integers as they are."""
        return array.astype(self.precision) if np.issubdtype(array.dtype, np.floating) else array

    def torch_forward(self, inputs: tuple[np.ndarray, ...], reference: Arrays | None = None) -> Arrays:
        """PyTorch's calls; forced if `reference` (PyTorch's layout) is given."""
        known = reference and {key: self._map_call(call, torch.from_numpy) for key, call in reference.items()}
        if known is None and not self.in_place:
            try:
                return _to_numpy(torch_calls(self.torch, self.torch_inputs(inputs), copies=False))
            except InPlaceError:
                self.in_place = True
        return _to_numpy(torch_calls(self.torch, self.torch_inputs(inputs), known, copies=self.in_place))

    def jax_forward(self, inputs: tuple[np.ndarray, ...], reference: Arrays | None = None) -> Arrays:
        """JAX's calls; forced if `reference` (JAX's layout) is given."""
        with jax.enable_x64(self.precision == "float64"), jax.default_matmul_precision("highest"):
            graphdef, state = nnx.split(self.jax)
            known = reference and {key: self._map_call(call, jnp.asarray) for key, call in reference.items()}
            run = self._jit(lambda state, inputs, known: jax_calls(nnx.merge(graphdef, state), inputs, known))
            return _to_numpy(run(state, self.jax_inputs(inputs), known))

    def torch_gradients(self, inputs: tuple[np.ndarray, ...], loss: Loss) -> Gradients:
        tensors = tuple(x.requires_grad_(x.is_floating_point()) for x in self.torch_inputs(inputs))
        self.torch.zero_grad()
        value = loss.torch(self.torch(*tensors))
        value.backward()
        params = {
            name: to_numpy(torch.zeros_like(param) if param.grad is None else param.grad)
            for name, param in self.torch.named_parameters()
            if param.requires_grad
        }
        return Gradients(float(value.detach()), params, [to_numpy(x.grad) for x in tensors if x.grad is not None])

    def jax_gradients(self, inputs: tuple[np.ndarray, ...], loss: Loss, ledger: Ledger) -> Gradients:
        trained = {name for name, param in self.torch.named_parameters() if param.requires_grad}
        entries = {entry.jax: entry for entry in ledger if entry.torch in trained}
        with jax.enable_x64(self.precision == "float64"), jax.default_matmul_precision("highest"):
            arrays = self.jax_inputs(inputs)
            floating = [i for i, x in enumerate(arrays) if jnp.issubdtype(x.dtype, jnp.floating)]
            graphdef, trained_state, rest = nnx.split(self.jax, lambda path, _: _dotted(path) in entries, ...)

            def scalar(trained_state: nnx.State, moving: list[jax.Array], rest: nnx.State) -> jax.Array:
                moved = list(arrays)
                for i, x in zip(floating, moving, strict=True):
                    moved[i] = x
                return loss.jax(nnx.merge(graphdef, trained_state, rest)(*moved))

            run = self._jit(jax.value_and_grad(scalar, argnums=(0, 1)))
            value, (params, grads) = run(trained_state, [arrays[i] for i in floating], rest)
        named = {_dotted(path): np.asarray(grad[...]) for path, grad in nnx.to_flat_state(params)}
        return Gradients(
            float(value),
            {entries[name].torch: entries[name].rule.to_torch(grad) for name, grad in named.items()},
            [_back(np.asarray(g), self.input_axes[i]) for i, g in zip(floating, grads, strict=True)],
        )

    def _map_call(self, call: Call, convert: Callable[[np.ndarray], Any]) -> Call:
        def tensors(arrays: list[np.ndarray]) -> list[Any]:
            return [convert(np.ascontiguousarray(self._cast(array))) for array in arrays]

        return Call(None if call.inputs is None else tensors(call.inputs), tensors(call.outputs))

    def _jit(self, function: Callable[..., Any]) -> Callable[..., Any]:
        fast_compile = self.precision == "float64" and jax.default_backend() == "cpu"
        options = {"xla_backend_optimization_level": 0} if fast_compile else None
        return jax.jit(function, compiler_options=options)


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


def _back(array: np.ndarray, axes: Axes) -> np.ndarray:
    return array if axes is None else array.transpose(np.argsort(axes))


def _to_numpy(calls: Calls) -> Arrays:
    return {
        key: Call([to_numpy(x) for x in call.inputs or []], [to_numpy(x) for x in call.outputs])
        for key, call in calls.items()
    }
