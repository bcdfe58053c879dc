"""Margin of a mistake: its error in units of the gates of `check`; above 1 the mistake is detected."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch

from parity.carry.convert import to_numpy
from parity.causes.replay import Recording, Sites
from parity.judgement.rows import REARRANGEMENTS, distance, gradient_rows
from parity.measure.gates import Gates, Row, rel_f
from parity.measure.layer_rounding import own_terms
from parity.power.mutate import mutated
from parity.power.mutations import Mutation, found, replay
from parity.power.recordings import calls_of
from parity.recording.capture import ROOT, Key
from parity.recording.inputs import Apply, positional
from parity.recording.structure import tensors
from parity.report.findings import tightness
from parity.runs.losses import Loss, default_loss
from parity.runs.torch_side import Arrays, Gradients, TorchSide


def changes_shapes(right: Sites, wrong: Sites) -> bool:
    """Return whether a mistake changes shapes or calls; a port with it could not be paired at all."""
    return {key: [x.shape for x in tensors] for key, tensors in right.items()} != {
        key: [x.shape for x in tensors] for key, tensors in wrong.items()
    }


def forced(right: Sites, wrong: Sites, module: torch.nn.Module, gates: Gates) -> tuple[float, float]:
    """Return the margin of the forced float64 rows of one call, and its largest error.

    The rows are the module's outputs and the inputs of the calls inside it.
    """
    margin = error = 0.0
    for key, wanted in right.items():
        if all(torch.equal(a, b) for a, b in zip(wrong[key], wanted, strict=True)):
            continue
        found = _distance(wrong[key], wanted)
        gate = 0.0 if key is None and isinstance(module, REARRANGEMENTS) else gates.f64
        margin, error = max(margin, _over(found, gate)), max(error, found)
    return margin, error


def _distance(wrong: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> float:
    pairs = [(to_numpy(a.detach()), to_numpy(b.detach())) for a, b in zip(wrong, right, strict=True) if b.numel()]
    return distance([a for a, _ in pairs], [b for _, b in pairs])[0]


def _over(error: float, gate: float) -> float:
    if error == 0:
        return 0.0
    return error / gate if gate > 0 else math.inf


def forced32(recording: Recording, mutation: Mutation, key: Key, gates: Gates) -> float:
    """Return the margin of the forced float32 row of a call's output, both sides measured against float64."""
    oracle, _ = recording.run()
    short = as_float32(recording)
    own, steps = short.run()
    change = mutation.among(found(short, steps))
    if change is None or not oracle[None]:
        return 0.0
    wrong = replay(short, change)
    if changes_shapes(own, wrong):
        return 0.0
    mine, theirs = _distance(own[None], oracle[None]), _distance(wrong[None], oracle[None])
    size = sum(x.numel() for x in oracle[None])
    limit = gates.f32_logits if key == ROOT else gates.f32_between
    given = next((to_numpy(x.detach()) for x in tensors((recording.args, recording.kwargs))), None)
    terms = own_terms(recording.module, given, to_numpy(oracle[None][0].detach()))
    return theirs / gates.float32(mine, max(size, 1), limit, terms=terms)


def as_float32(recording: Recording) -> Recording:
    """Return the same call with the module and all floating-point tensors in float32."""
    module = copy.deepcopy(recording.module).float()
    names = {id(old): new for (_, old), (_, new) in _twins(recording.module, module)}
    modules = {path: names.get(id(old), old) for path, old in recording.modules.items()}
    args, kwargs = _short((recording.args, recording.kwargs))
    return Recording(module, args, kwargs, _short(recording.inner), modules, path=recording.path)


def _twins(old: torch.nn.Module, new: torch.nn.Module) -> Any:
    return zip(old.named_modules(), new.named_modules(), strict=True)


def _short(tree: Any) -> Any:
    return torch.utils._pytree.tree_map(
        lambda x: x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x, tree
    )


@dataclasses.dataclass
class Whole:
    """Measurements of `check` on the whole model: every layer in free mode, loss, gradients, training mode."""

    model: torch.nn.Module
    arrays: tuple[np.ndarray, ...]
    paired: Collection[str]
    loss: Loss | None
    gates: Gates
    level: str
    apply: Apply = positional
    _right: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def work(self) -> float:
        """Cost of one measurement in forward passes; a backward pass counts as two."""
        return {"forward": 1.0, "gradients": 4.0, "train": 8.0}[self.level]

    def margin(self, mutation: Mutation) -> float:
        """Return the largest ratio of error to gate of the whole model with this mistake; inf if it cannot run."""
        wrong = mutated(self.model, mutation, self.paired)
        try:
            return self.of(wrong)
        except (RuntimeError, ValueError, TypeError, IndexError):  # its result does not fit later modules
            return math.inf

    def of(self, wrong: torch.nn.Module) -> float:
        """As `margin`, for any model in place of the right one."""
        rows = self._free(wrong)
        if self.level != "forward":
            rows += self._gradients(wrong, training=False)
        if self.level == "train":
            rows += self._gradients(wrong, training=True)
        return max((tightness(row) for row in rows), default=0.0)

    @property
    def _loss(self) -> Loss:
        """The given loss, or the default for the model's outputs."""
        return self.loss or self._known("loss", self._default_loss)

    def _default_loss(self) -> Loss:
        shapes = calls_of(self.model, TorchSide(self.model, "float64").inputs(self.arrays), self.apply)[-1].outputs
        return default_loss(shapes, [None] * len(shapes))

    def _known(self, name: str, compute: Any) -> Any:
        if name not in self._right:
            self._right[name] = compute()
        return self._right[name]

    def _free(self, wrong: torch.nn.Module) -> list[Row]:
        right: Arrays = self._known(
            "free", lambda: TorchSide.of(self.model, "float64", apply=self.apply).forward(self.arrays)
        )
        found = TorchSide.of(wrong, "float64", apply=self.apply).forward(self.arrays)
        return [
            Row(key[0], "layer", "free", "float64", distance(found[key].outputs, call.outputs)[0], self.gates.f64)
            for key, call in right.items()
            if key in found and all(x.size for x in call.outputs)
        ]

    def _gradients(self, wrong: torch.nn.Module, *, training: bool) -> list[Row]:
        right = self._known(f"gradients {training}", lambda: self._run(self.model, training))
        found = self._run(wrong, training)
        rows = gradient_rows(right[0], found[0], self.gates)
        return rows + [
            Row(name, "buffer", "train", "float64", rel_f(found[1][name], value), self.gates.f64)
            for name, value in right[1].items()
        ]

    def _run(self, model: torch.nn.Module, training: bool) -> tuple[Gradients, dict[str, np.ndarray]]:
        """Return loss, gradients and (in training mode) updated buffers; the fixed seed gives equal dropout masks."""
        side = TorchSide.of(model, "float64", training=training, apply=self.apply)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            gradients = side.gradients(self.arrays, self._loss)
        buffers = {n: to_numpy(x) for n, x in side.model.named_buffers() if training and x.is_floating_point()}
        return gradients, {name: x for name, x in buffers.items() if x.size}
