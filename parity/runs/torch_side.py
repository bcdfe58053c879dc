"""Runs of a PyTorch model in one precision: forward with the calls of every module, and gradients."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from parity.carry.convert import Ledger, to_numpy
from parity.carry.copies import torch_copy
from parity.carry.dtypes import as_xla_rounds, torch_in_precision
from parity.precision.by_design import Design
from parity.precision.wide_torch import wide
from parity.random_draws.matching import Handed
from parity.random_draws.torch_draws import TorchDraws
from parity.recording.capture import (
    Call,
    Calls,
    InPlaceError,
    Key,
    torch_calls,
    torch_hooks,
)
from parity.recording.inputs import Apply, positional
from parity.recording.structure import tensors
from parity.runs.losses import Loss

Arrays = dict[Key, Call]
"""Calls with numpy arrays in place of tensors."""


@dataclasses.dataclass(frozen=True)
class Gradients:
    """A loss and its gradients: parameters and inputs in PyTorch's names and layouts, call outputs in each side's own.

    Gradients of complex numbers are dL/dRe + i dL/dIm, as in PyTorch (JAX's are their conjugates).
    `outputs` are the model's outputs and the gradients of the loss by them, for PyTorch only.
    """

    loss: float
    params: dict[str, np.ndarray]
    inputs: list[np.ndarray]
    activations: dict[Key, list[np.ndarray]]
    outputs: list[tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=list)

    def within(self, ledger: Ledger) -> Gradients:
        """Exclude the parameters without a partner and the aliases of tied parameters."""
        names = {entry.torch for entry in ledger}
        return dataclasses.replace(self, params={name: g for name, g in self.params.items() if name in names})


@dataclasses.dataclass
class TorchSide:
    """A copy of the PyTorch model in one precision."""

    model: torch.nn.Module
    precision: str
    apply: Apply = positional
    in_place: bool = False
    """Whether the model modifies activations in place; set by the first free run."""
    design: Design | None = None

    @classmethod
    def of(
        cls,
        model: torch.nn.Module,
        precision: str,
        *,
        training: bool = False,
        apply: Apply = positional,
        design: Design | None = None,
    ) -> TorchSide:
        return cls(torch_copy(model, getattr(torch, precision)).train(training), precision, apply, design=design)

    def wide(self) -> contextlib.AbstractContextManager[Any]:
        """Context manager that removes the model's casts to formats below this run's precision."""
        if self.precision != "float64" and not (self.design and self.design.ours_widen(self.precision)):
            return contextlib.nullcontext()
        return wide(self.precision)

    @classmethod
    def as_configured(cls, model: torch.nn.Module, apply: Apply = positional) -> TorchSide:
        """Use the model's dtypes; inputs have the dtype of its first floating parameter."""
        moving = (p.dtype for p in model.parameters() if p.is_floating_point())
        return cls(torch_copy(model).eval(), str(next(moving, torch.float32)).removeprefix("torch."), apply)

    def runs(self, arrays: Sequence[np.ndarray]) -> bool:
        """Return whether the model runs in its dtype: some operations do not support half precision on some devices."""
        if self.precision in ("float32", "float64"):
            return True
        try:
            with torch.no_grad():
                self.apply(self.model, self.inputs(arrays))
        except RuntimeError as error:
            return "not implemented for" not in str(error)
        return True

    def inputs(self, arrays: Sequence[np.ndarray]) -> tuple[torch.Tensor, ...]:
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        dtype = getattr(torch, self.precision)
        return tuple(torch_in_precision(torch.from_numpy(np.array(x)).to(device), dtype) for x in arrays)

    def forward(
        self,
        arrays: Sequence[np.ndarray],
        reference: Arrays | None = None,
        *,
        only: Collection[Key] | None = None,
        draws: Handed | None = None,
    ) -> Arrays:
        """Return the calls; forced if `reference` (PyTorch's layout) is given. `draws`: values of the random draws."""
        inputs = self.inputs(arrays)
        if reference is None and not self.in_place:
            try:
                with self._running(draws):
                    return to_arrays(torch_calls(self.model, inputs, copies=False, only=only, apply=self.apply))
            except InPlaceError:
                self.in_place = True
        known = reference and {key: self._call(call) for key, call in reference.items()}
        with self._running(draws):
            return to_arrays(torch_calls(self.model, inputs, known, copies=self.in_place, only=only, apply=self.apply))

    @contextlib.contextmanager
    def _running(self, draws: Handed | None) -> Iterator[None]:
        """Context manager for a run with the given draws, without casts, and with subnormals flushed as in XLA."""
        with contextlib.ExitStack() as stack:
            if draws is not None:
                stack.enter_context(TorchDraws(self.model, draws, quiet=True))
            stack.enter_context(self.wide())
            if self.precision == "float32":
                stack.enter_context(as_xla_rounds())
            yield

    def _call(self, call: Call) -> Call:
        inputs = None if call.inputs is None else list(self.inputs(call.inputs))
        return Call(inputs, list(self.inputs(call.outputs)))

    def gradients(
        self,
        arrays: Sequence[np.ndarray],
        loss: Loss,
        *,
        draws: Handed | None = None,
        activations: Collection[Key] = (),
    ) -> Gradients:
        """Return the loss and the gradients of parameters, inputs and (floating) outputs of the calls in `activations`.

        `draws`: values of the random draws; None: the model draws them.

        Raises:
            ValueError: The loss depends on nothing that has a gradient.
        """
        given = tuple(x.requires_grad_(x.is_floating_point() or x.is_complex()) for x in self.inputs(arrays))
        grads: dict[Key, list[torch.Tensor]] = {}

        def after(key: Key, outputs: list[torch.Tensor]) -> list[torch.Tensor] | None:
            if key in activations:
                # A copy: a module that returns its input would otherwise share the gradient of the tensor's other uses,
                # and an in-place module would replace the tensor's history.
                outputs = [x.clone().requires_grad_() for x in outputs]
                grads[key] = [x.detach().new_zeros(()).expand(x.shape) for x in outputs]  # for unused outputs
                for i, x in enumerate(outputs):
                    x.register_hook(lambda g, key=key, i=i: grads[key].__setitem__(i, g.detach()))
            return outputs

        self.model.zero_grad()
        # Also during the backward pass: checkpointed modules are recomputed there.
        with self._running(draws):
            with torch_hooks(self.model, lambda key, tensors: None, after):
                output = self.apply(self.model, given)
                moving = {id(x): x for x in tensors(output) if x.requires_grad}
                for x in moving.values():
                    x.retain_grad()
                value = loss.torch(output)
            if not value.requires_grad:
                raise ValueError('the loss depends on no parameter and no floating input: use level="forward"')
            value.backward()
        params = {
            name: _gradient(param)
            for name, param in self.model.named_parameters(remove_duplicate=False)
            if param.requires_grad
        }
        seen = {key: [to_numpy(g) for g in found] for key, found in grads.items()}
        by_inputs = [_gradient(x) for x in given if x.requires_grad]
        outputs = [(to_numpy(x), _gradient(x)) for x in moving.values()]
        return Gradients(float(value.detach()), params, by_inputs, seen, outputs)


def _gradient(tensor: torch.Tensor) -> np.ndarray:
    return to_numpy(torch.zeros_like(tensor) if tensor.grad is None else tensor.grad)


def to_arrays(calls: Calls) -> Arrays:
    return {
        key: Call([to_numpy(x) for x in call.inputs or []], [to_numpy(x) for x in call.outputs])
        for key, call in calls.items()
    }
