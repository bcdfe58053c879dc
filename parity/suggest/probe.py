"""Outputs and gradients of both models in float64, with given weights."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch.overrides import TorchFunctionMode

from parity.carry.arrays import to_numpy
from parity.carry.ledger import identity, jax_variables
from parity.carry.wrappers import state_of
from parity.pairing.shapes import first_line
from parity.precision.jax_casts import casts
from parity.precision.wide_jax import widened
from parity.recording.structure import tensors
from parity.runs.compiled_blocks import compiler_options
from parity.runs.jax_side import JaxSide
from parity.runs.torch_side import TorchSide

Named = dict[str, np.ndarray]


COMPILED = 40
"""Largest number of operations that are not compiled together: a compiled model is a few."""


class _DifferentiableStatistics(TorchFunctionMode):
    """Writes out batch normalization in evaluation mode: PyTorch's has no gradient for its statistics."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if function is not torch.nn.functional.batch_norm:
            return function(*args, **given)
        names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
        given |= dict(zip(names, args, strict=False))
        if given.get("training") or given["running_mean"] is None:
            return function(*args, **(kwargs or {}))
        x = given["input"]
        shape = (1, -1, *[1] * (x.ndim - 2))
        y = (x - given["running_mean"].view(shape)) / (given["running_var"].view(shape) + given.get("eps", 1e-5)).sqrt()
        y = y if given.get("weight") is None else y * given["weight"].view(shape)
        return y if given.get("bias") is None else y + given["bias"].view(shape)


@dataclasses.dataclass
class TorchProbe:
    """A PyTorch model in float64 whose floating tensors are set and differentiated by. A tied tensor has one name."""

    side: TorchSide
    arrays: Sequence[np.ndarray]

    def __post_init__(self) -> None:
        self.leaves: dict[str, torch.Tensor] = {}
        self.tied: dict[str, str] = {}
        first: dict[Any, str] = {}
        for name, tensor in state_of(self.side.model).items():
            known = first.setdefault(identity(tensor), name)
            if known != name:
                self.tied[name] = known
            elif isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                self.leaves[name] = tensor
        for tensor in self.leaves.values():
            if tensor.is_leaf:
                tensor.requires_grad_(True)

    def untie(self) -> None:
        """Give every tied tensor a copy of its own, for a JAX model that has several tensors."""
        for name in self.tied:
            path, _, leaf = name.rpartition(".")
            module = self.side.model.get_submodule(path)
            if leaf in module._parameters:
                module._parameters[leaf] = torch.nn.Parameter(module._parameters[leaf].detach().clone())  # type: ignore[union-attr]
        self.__post_init__()

    def run(self, values: Mapping[str, np.ndarray], directions: Sequence[np.ndarray] = ()) -> tuple[Any, Named]:
        """Return the floating outputs, and the gradients of their products with `directions` by every tensor.

        Raises:
            ValueError: The model does not run on these inputs.
        """
        with torch.no_grad():
            for name, value in values.items():
                self.leaves[name].copy_(torch.from_numpy(value))
        try:
            with self.side.wide(), _DifferentiableStatistics():
                found = tensors(self.side.apply(self.side.model, self.side.inputs(self.arrays)))
        except Exception as error:  # any exception of third-party code
            raise ValueError(f"PyTorch's model cannot be run on these inputs: {first_line(error)}") from error
        outputs = [x for x in found if x.is_floating_point()]
        grads: Named = {}
        moving = [(x, c) for x, c in zip(outputs, directions, strict=False) if x.requires_grad]
        leaves = {name: x for name, x in self.leaves.items() if x.requires_grad}
        if moving:
            total = torch.stack([(x * torch.from_numpy(c).to(x)).sum() for x, c in moving]).sum()
            by = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
            grads = {
                n: to_numpy(torch.zeros_like(x) if g is None else g)
                for (n, x), g in zip(leaves.items(), by, strict=True)
            }
        return [to_numpy(x) for x in outputs], {
            n: grads.get(n, np.zeros(tuple(x.shape))) for n, x in self.leaves.items()
        }


@dataclasses.dataclass
class JaxProbe:
    """A flax model in float64 whose floating variables are set and differentiated by."""

    side: JaxSide
    arrays: Sequence[np.ndarray]

    def __post_init__(self) -> None:
        self.variables = jax_variables(self.side.model)
        self.names = [name for name, variable in self.variables.items() if _is_floating(variable)]
        self.output_shapes: list[tuple[int, ...]] = []
        self._parts = nnx.split(self.side.model)
        self._both: Any = None

    def run(self, values: Mapping[str, np.ndarray], directions: Sequence[np.ndarray] = ()) -> tuple[Any, Named]:
        """Return the floating outputs, and the gradients of their products with `directions` by every variable.

        The model is compiled once, unless it is a few compiled programs already.
        """
        with self.side.switches():
            own = {n: np.asarray(self.variables[n][...]) if n not in values else values[n] for n in self.names}
            given = {name: jnp.asarray(value, jnp.float64) for name, value in own.items()}
            if self._both is None:
                program = jax.make_jaxpr(self._outputs)(given)
                self.output_shapes = [x.shape for x in program.out_avals]
                narrow = any(True for _ in casts(program, self.side.precision))
                both = functools.partial(_outputs_and_gradients, program)
                # The precision of a port is not judged here: softmax in float32, for example, runs in float64, too.
                self._both = widened(both, self.side.precision, lambda cast: True) if narrow else both
                if narrow or len(program.eqns) > COMPILED:
                    options = compiler_options(self.side.model)
                    self._both = jax.jit(self._both).lower(given, self._zeros()).compile(options)
            outputs, grads = self._both(given, [jnp.asarray(c) for c in directions] or self._zeros())
        return [np.asarray(x) for x in outputs], {name: np.asarray(g) for name, g in grads.items()}

    def _zeros(self) -> list[jax.Array]:
        return [jnp.zeros(shape) for shape in self.output_shapes]

    def _outputs(self, values: dict[str, jax.Array]) -> list[jax.Array]:
        graphdef, state = self._parts
        model = nnx.merge(graphdef, jax.tree.map(lambda x: x, state))
        variables = jax_variables(model)
        for name, value in values.items():
            variables[name].set_value(value)
        found = tensors(self.side.apply(model, self.side.inputs(self.arrays)))
        return [x for x in found if jnp.issubdtype(x.dtype, jnp.floating)]


def _outputs_and_gradients(program: Any, values: dict[str, jax.Array], directions: list[jax.Array]) -> Any:
    """Run the traced model: tracing it anew takes longer than running it."""

    def outputs(values: dict[str, jax.Array]) -> list[jax.Array]:
        return jax.core.eval_jaxpr(program.jaxpr, program.consts, *jax.tree.leaves(values))

    found, back = jax.vjp(outputs, values)
    return found, back([c.astype(x.dtype) for x, c in zip(found, directions, strict=True)])[0]


def _is_floating(variable: nnx.Variable) -> bool:
    return jnp.issubdtype(getattr(variable, "dtype", np.int32), jnp.floating)
