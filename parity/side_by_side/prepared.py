"""The models and batches of a training in both frameworks, ready to be copied for a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from flax import nnx

from parity.carry.arrays import to_numpy
from parity.carry.entries import Ledger
from parity.carry.rules import Rules
from parity.optimizer_state.state import parameter_names
from parity.pairing.input_layouts import fitting_inputs
from parity.proof.prepare import paired_tensors
from parity.recording.align import input_axes
from parity.recording.inputs import Apply, Arguments
from parity.runs.jax_side import JaxSide
from parity.runs.torch_side import TorchSide
from parity.side_by_side.records import Batch
from parity.training_mode.train_mode import silenced

Batches = Sequence[tuple[Any, Any]] | Callable[[int], tuple[Any, Any]]


@dataclasses.dataclass(frozen=True)
class Source:
    """The batches of every step."""

    get: Callable[[int], tuple[Any, Any]]
    accumulation: int

    @classmethod
    def of(cls, batches: Batches, accumulation: int) -> Source:
        if callable(batches):
            return cls(batches, accumulation)
        known = list(batches)
        if not known:
            raise ValueError("there are no batches: pass a list of (inputs, target)")
        return cls(lambda i: known[i % len(known)], accumulation)

    def arguments(self, i: int) -> tuple[Arguments, np.ndarray | None]:
        given = self.get(i)
        if not isinstance(given, tuple | list) or len(given) != 2:
            raise ValueError(f"batch {i} has to be a pair of (inputs, target), not {type(given).__name__}")
        target = None if given[1] is None else to_numpy(given[1])
        return Arguments.of(given[0]), target

    def step(self, i: int) -> list[Batch]:
        found = (self.arguments(i * self.accumulation + j) for j in range(self.accumulation))
        return [(arguments.arrays, target) for arguments, target in found]


@dataclasses.dataclass(frozen=True)
class Pair:
    """Both models, prepared to be copied for a run. `ledger` has the parameters of PyTorch only."""

    torch_model: torch.nn.Module
    jax_side: JaxSide
    apply: Apply
    training: bool
    ledger: Ledger
    buffers: Ledger
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls, torch_model: torch.nn.Module, jax_model: nnx.Module, source: Source, rules: Rules, training: bool
    ) -> Pair:
        tensors = paired_tensors(torch_model, jax_model, rules)
        if tensors.missing:
            raise ValueError(f"{tensors.missing[0].name} of PyTorch has no partner in JAX: {tensors.missing[0].note}")
        torch_model, ledger = tensors.torch_model, tensors.ledger
        added = next((entry for entry in ledger if entry.added), None)
        if added is not None:
            first = next(entry.torch for entry in ledger if entry.jax == added.jax and not entry.added)
            raise ValueError(
                f"{first} and {added.torch} of PyTorch are one tensor in JAX, {added.jax}, which trains half as fast: "
                "freeze one of them in PyTorch and leave it out, or give JAX both"
            )
        names = set(parameter_names(torch_model, {entry.torch for entry in ledger}).values())
        arguments, _ = source.arguments(0)
        silent = silenced(torch_model, jax_model, rules) if training else (torch_model, jax_model)
        usual = tuple(input_axes(x.ndim) for x in arguments.arrays)
        ours = TorchSide.of(torch_model, "float64", apply=arguments.apply)
        theirs = JaxSide.of(jax_model, "float64", usual, apply=arguments.apply)
        theirs, note = fitting_inputs(ours, theirs, arguments.arrays, rules)
        side = JaxSide.of(silent[1], "float64", theirs.input_axes, training=training, apply=arguments.apply)
        unpaired = sorted(names - {entry.torch for entry in ledger})
        notes = [*tensors.notes, *ledger.notes, *([note] if note else [])]
        if unpaired:
            notes.append(f"not compared, since they have no partner in JAX: {', '.join(unpaired)}")
        if not training:
            notes.append("both models ran in evaluation mode: without dropout, and with fixed running statistics")
        else:
            notes.append("dropout was off on both sides")
        return cls(
            silent[0],
            side,
            arguments.apply,
            training,
            Ledger(tuple(entry for entry in ledger if entry.torch in names)),
            Ledger(tuple(entry for entry in ledger if entry.torch not in names)),
            tuple(notes),
        )

    def torch_side(self) -> TorchSide:
        return TorchSide.of(self.torch_model, "float64", training=self.training, apply=self.apply)
