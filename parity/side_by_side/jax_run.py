"""Training in JAX, in float64: from PyTorch's parameters in every step (forced), or by itself (free)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from parity.carry.convert import Ledger, jax_arrays, torch_arrays
from parity.optimizer_state.state import named
from parity.recording.inputs import Apply
from parity.runs.jax_side import JaxSide
from parity.side_by_side.arithmetic import Arrays
from parity.side_by_side.records import Batch

JaxLoss = Callable[[Any, Any], jax.Array]
Flat = dict[str, jax.Array]
Average = Callable[[Flat, Flat], Mapping[str, jax.Array]]


class JaxLoop:
    """A copy of JAX's model whose parameters are trained: those of the ledger, by name.

    `reduction` is "mean" or "sum" of the micro-batches, or "optax": the transformation gets them one by one
    (`optax.MultiSteps`).
    """

    def __init__(
        self,
        side: JaxSide,
        apply: Apply,
        loss: JaxLoss,
        make: Any,
        ledger: Ledger,
        *,
        reduction: str = "mean",
        ema: Average | None = None,
        ema_at: str = "after",
    ) -> None:
        self.side, self.ledger, self.reduction, self.ema, self.ema_at = side, ledger, reduction, ema, ema_at
        names = {entry.jax for entry in ledger}

        def is_trained(path: tuple[Any, ...], _: Any) -> bool:
            return ".".join(map(str, path)) in names

        with side.switches():
            parts: Any = nnx.split(side.model, is_trained, ...)
            graphdef, template, self.rest = parts
            self.start: Flat = {}
            named(template, self.start.setdefault)
            self.tx = self._transformation(make)
        apply_updates = self.tx.update

        def value(params: Flat, rest: Any, inputs: Sequence[jax.Array], target: Any) -> Any:
            own = jax.tree.map(lambda x: x, rest)  # variables of this trace, so that running statistics can be updated
            module: Any = nnx.merge(graphdef, named(template, lambda name, _: params[name]), own)
            found = loss(apply(module, inputs), target)
            if jnp.size(found) != 1:
                raise ValueError("JAX's loss has to return one number (an array with one element)")
            parts: Any = nnx.split(module, is_trained, ...)
            return found.reshape(()), parts[2]

        # Without XLA's optimizations compilation is faster, and no digit that the gate resolves changes.
        quick = jax.default_backend() == "cpu"
        options = {"xla_backend_optimization_level": 0} if quick else None
        self._gradient = jax.jit(jax.value_and_grad(value, has_aux=True), compiler_options=options)
        self._update = jax.jit(apply_updates, compiler_options=options)
        self.restart()

    def _transformation(self, make: Any) -> Any:
        tx = make
        if not hasattr(make, "init") and callable(make):
            tx = make(dict(self.start))
        if isinstance(tx, nnx.Optimizer):
            tx = tx.tx
        if not hasattr(tx, "init") or not hasattr(tx, "update"):
            raise ValueError(
                f"optax has to be an optax transformation, or a function of the parameters that returns one, not "
                f"{type(tx).__name__}"
            )
        if isinstance(tx, optax.MultiSteps) and self.reduction != "optax":
            raise ValueError('optax.MultiSteps accumulates by itself: pass jax_reduction="optax"')
        return tx

    def restart(self) -> None:
        """Return to the first parameters and a fresh optimizer."""
        self.params, self.variables = dict(self.start), self.rest
        with self.side.switches():
            self.state = named(self.tx.init(self.params), _wide_count)
        self.average: Flat = dict(self.start)

    def micro(self, batch: Batch) -> tuple[float, Flat]:
        """Return loss and gradients of one micro-batch at the present parameters."""
        with self.side.switches():
            inputs = self.side.inputs(batch[0])
            target = None if batch[1] is None else self.side._array(batch[1])
            (loss, self.variables), grads = self._gradient(self.params, self.variables, inputs, target)
        return float(loss), grads

    def advance(self, gradients: Sequence[Flat]) -> None:
        """Step the optimizer, given the gradients of every micro-batch, and update the moving average."""
        with self.side.switches():
            before = self.params
            if self.reduction != "optax":
                factor = 1 / len(gradients) if self.reduction == "mean" else 1.0
                gradients = [jax.tree.map(lambda *parts: factor * sum(parts), *gradients)]
            for given in gradients:
                updates, self.state = self._update(given, self.state, self.params)
                self.params = optax.apply_updates(self.params, updates)
            if self.ema is not None:
                self.average = dict(self.ema(self.average, self.params if self.ema_at == "after" else before))

    @property
    def track(self) -> Any:
        """Everything that changes during training: parameters, other variables, optimizer, moving average."""
        return self.params, self.variables, self.state, self.average

    @track.setter
    def track(self, found: Any) -> None:
        self.params, self.variables, self.state, self.average = found

    def forced(
        self, start: Arrays, gradients: Sequence[Arrays], batches: Sequence[Batch], end: Arrays
    ) -> tuple[list[float], list[Arrays], Arrays, Arrays | None]:
        """Step from PyTorch's parameters, with its gradients and its moving average's parameters.

        Returns:
            The losses and gradients of JAX's model, the change of the parameters, and the moving average.
        """
        self.set_weights(start)
        found = [self.micro(batch) for batch in batches]
        average, ema = self.average, self.ema
        self.ema = None
        self.advance([self.carried(given) for given in gradients])
        self.ema = ema
        weights = self.weights()
        change = {name: weights[name] - start[name] for name in weights}
        if self.ema is not None:
            with self.side.switches():
                self.average = dict(self.ema(average, self.carried(end if self.ema_at == "after" else start)))
        losses, own = (
            [loss for loss, _ in found],
            [torch_arrays(self.ledger, _arrays(g), gradients=True) for _, g in found],
        )
        return losses, own, change, None if self.ema is None else self.back(self.average)

    def free(self, batches: Sequence[Batch]) -> float:
        """Step from JAX's own parameters; return the mean loss before it."""
        found = [self.micro(batch) for batch in batches]
        self.advance([grads for _, grads in found])
        return sum(loss for loss, _ in found) / len(found)

    def carried(self, arrays: Arrays) -> Flat:
        """Convert PyTorch's arrays to JAX's names and layouts."""
        with self.side.switches():
            return {name: jnp.asarray(x) for name, x in jax_arrays(self.ledger, arrays).items()}

    def back(self, arrays: Mapping[str, Any]) -> Arrays:
        """Convert JAX's arrays to PyTorch's names and layouts."""
        return torch_arrays(self.ledger, _arrays(arrays))

    def set_weights(self, arrays: Arrays) -> None:
        self.params = self.carried(arrays)

    def weights(self) -> Arrays:
        """Return the parameters with PyTorch's names and layouts."""
        return self.back(self.params)


COUNTS = ("count", "mini_step", "gradient_step")


def _wide_count(name: str, leaf: Any) -> Any:
    """Make a count of steps an int64: JAX divides an int32 in float32, so schedules would be rounded to it."""
    counts = name.split(".")[-1] in COUNTS and jnp.issubdtype(leaf.dtype, jnp.integer)
    return leaf.astype(jnp.int64) if counts else leaf


def _arrays(flat: Mapping[str, Any]) -> Arrays:
    return {name: np.asarray(x) for name, x in flat.items()}
