"""Compare what a port's programs computed with PyTorch, by the gates of `parity.check`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from parity.judgement.input_noise import perturbed, perturbed_gradients
from parity.judgement.rows import float32_gradient_rows, float32_rows, gradient_rows, layer_rows, noise_floor
from parity.judgement.small_elements import small_gradients, small_ones, with_small_gradients
from parity.measure import cancellation
from parity.measure.gates import Gates, Row, real_numbers
from parity.pairing.match_calls import Pair
from parity.precision.by_design import Design
from parity.recording.capture import ROOT, Call
from parity.runs.losses import Loss
from parity.runs.torch_side import Gradients, TorchSide
from parity.verify.arrays import named
from parity.verify.run import UnjudgeableError
from parity.verify.trials import Tensors, Trial, outputs, sides

GATES = Gates()
"""Not to be set by anyone."""

NONSENSE = "its process gave an answer that makes no sense"

Arrays = Mapping[str, np.ndarray]


Described = Mapping[str, Sequence[tuple[str, str, list[int]]]]
"""Precision -> (name, dtype, shape) of every output of a port on one trial."""


def described(answer: Any, trials: Sequence[Trial]) -> Sequence[Described]:
    """Return what a port's process says of its outputs, trial by trial.

    Raises:
        UnjudgeableError: It says nonsense.
    """
    try:
        found = [
            {x: [(str(n), str(d), [int(i) for i in s]) for n, d, s in own[x]] for x in trial.precisions}
            for own, trial in zip(answer, trials, strict=True)
        ]
        if any(
            sorted(x[:1] for x in own["float64"]) != sorted(x[:1] for x in other)
            for own in found
            for other in own.values()
        ):
            raise ValueError("other outputs in another precision")
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
        raise UnjudgeableError(NONSENSE) from error
    return found


def alignment(wanted: Arrays, given: Sequence[tuple[str, str, list[int]]]) -> tuple[dict[str, str], str]:
    """Return which output of the port is which of PyTorch's, by name, else by order; and what is wrong if none fits.

    `given` are (name, dtype, shape) of the port's outputs.
    """
    theirs = [name for name, *_ in given]
    if set(theirs) == set(wanted):
        found = {name: name for name in wanted}
    elif len(theirs) == len(wanted) and any(all(n == "" or n.startswith("[") for n in x) for x in (theirs, wanted)):
        found = dict(zip(wanted, theirs, strict=True))
    else:
        listed = [", ".join(n or "one tensor" for n in list(x)[:8]) or "nothing" for x in (wanted, theirs)]
        return {}, f"the reference returns {listed[0]}; the port returns {listed[1]}"
    kinds = {name: (dtype, shape) for name, dtype, shape in given}
    for name, other in found.items():
        what, reference, (dtype, shape) = name or "the output", wanted[name], kinds[other]
        if list(reference.shape) != shape:
            return {}, f"{what} has shape {list(reference.shape)} in PyTorch, {shape} in the port"
        if (reference.dtype.kind in "fc") != ("float" in dtype or "complex" in dtype):
            return {}, f"{what} is {reference.dtype} in PyTorch, {dtype} in the port (in a float64 run)"
    return found, ""


class Judge:
    """The reference on one trial, and the judgement of a port's numbers on it."""

    def __init__(self, trial: Trial, tensors: Tensors, design: Design) -> None:
        self.trial, self.tensors = trial, tensors
        self.sides = sides(trial, design)
        self.oracle = outputs(self.sides["float64"], trial.arrays)
        self.cotangents: dict[str, np.ndarray] = {}

    def again(self) -> dict[str, np.ndarray]:
        """Return the outputs of a second run."""
        return outputs(self.sides["float64"], self.trial.arrays)

    # ---- forward ----

    def forward(self, given: Mapping[str, Arrays]) -> list[Row]:
        """Return the rows of the outputs; `given` are the port's by precision and by PyTorch's names."""
        double, single = self.sides["float64"], self.sides["float32"]
        names = tuple(self.oracle)
        pair = Pair(ROOT, ROOT, double.model, None, (), (None,) * len(names), names if len(names) > 1 else ())

        def calls(arrays: Arrays) -> dict[tuple[str, int], Call]:
            return {ROOT: Call(None, [arrays[name] for name in names])}

        wanted, ours = calls(self.oracle), calls(outputs(single, self.trial.arrays))
        perturbed_run = calls(outputs(double, perturbed(self.trial.arrays)))
        noise = noise_floor([pair], wanted, perturbed_run)
        small = small_ones(wanted, [ours, perturbed_run], GATES.f64)
        rows = layer_rows([pair], wanted, calls(given["float64"]), "free", GATES, noise, small)
        if "float32" in given:
            rows += float32_rows([pair], wanted, ours, calls(given["float32"]), "free", GATES, noise)
        return cancellation.judged(rows).rows

    # ---- gradients ----

    def draw_cotangents(self, seed: int) -> dict[str, np.ndarray]:
        """Draw the gradients of the loss by every floating output, at random: zero where an output is not finite."""
        draw = np.random.default_rng(seed)
        for name, y in self.oracle.items():
            if y.dtype.kind in "fc":
                z = draw.standard_normal(y.shape)
                z = z + 1j * draw.standard_normal(y.shape) if y.dtype.kind == "c" else z
                z = np.asarray(z / math.sqrt(max(y.size, 1))).astype("complex64" if y.dtype.kind == "c" else "float32")
                self.cotangents[name] = np.where(np.isfinite(y), z, 0).astype(y.dtype)
        return self.cotangents

    @property
    def loss(self) -> Loss:
        """The sum of <c, y> over the outputs."""

        def in_torch(output: object) -> torch.Tensor:
            terms = []
            for name, y in named(output):
                if name in self.cotangents:
                    c = torch.from_numpy(self.cotangents[name]).to(y)
                    y = torch.where(torch.isfinite(y), y, torch.zeros((), dtype=y.dtype))
                    terms.append((c.conj() * y).real.sum() if y.is_complex() else (c * y).sum())
            return torch.stack(terms).sum()

        return Loss("random direction", in_torch, lambda output: output)

    def gradients(self, given: Mapping[str, tuple[Arrays, Sequence[np.ndarray], Arrays]]) -> list[Row]:
        """Return the rows of the gradients; `given` are, by precision, the port's for weights and inputs, and its
        outputs by PyTorch's names.
        """
        arrays = self.trial.arrays
        wanted = self._own(self.sides["float64"])
        port = {x: self._given(*parts) for x, parts in given.items()}
        rows = gradient_rows(wanted, port["float64"], GATES)
        suspects = small_gradients(wanted, port["float64"], GATES)
        base = self._own(self.sides["float32"])
        rows = with_small_gradients(rows, suspects, [base])
        if "float32" in port:
            rows += float32_gradient_rows(wanted, base, port["float32"], GATES)
        found = cancellation.judged(rows).rows
        if all(row.passed for row in found):
            return found
        side = TorchSide(self.trial.model, "float64", self.trial.apply)  # noise matters only if it changes the verdict
        side = TorchSide.of(side.model, "float64", apply=side.apply, design=self.sides["float64"].design)
        perturbed_run = self._unique(perturbed_gradients(side, arrays, self.loss))
        rows = with_small_gradients(gradient_rows(wanted, port["float64"], GATES), suspects, [base, perturbed_run])
        if "float32" in port:
            rows += float32_gradient_rows(wanted, base, port["float32"], GATES, perturbed_run=perturbed_run)
        return cancellation.judged(rows).rows

    def _own(self, side: TorchSide) -> Gradients:
        return self._unique(side.gradients(self.trial.arrays, self.loss))

    def _unique(self, found: Gradients) -> Gradients:
        """Leave out the further names of tied weights."""
        params = {name: found.params[name] for name in self.tensors.trained}
        outputs = [(y, self.cotangents[name]) for name, y in self.oracle.items() if name in self.cotangents]
        return Gradients(found.loss, params, found.inputs, {}, outputs)

    def _given(self, params: Arrays, inputs: Sequence[np.ndarray], found: Arrays) -> Gradients:
        held = [(found[name], c) for name, c in self.cotangents.items()]
        loss = sum(inner(c, np.where(np.isfinite(y), y, 0)) for y, c in held)
        return Gradients(loss, dict(params), list(inputs), {}, held)


def inner(a: np.ndarray, b: np.ndarray) -> float:
    """Return <a, b> of two arrays as vectors of real numbers."""
    x, y = real_numbers(a, b)
    return float(np.vdot(x, y))
