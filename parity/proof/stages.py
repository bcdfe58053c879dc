"""The stages of one check: every layer, gradients, causes, training mode; float64 first, then float32."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx

from parity.carry.convert import Ledger
from parity.carry.rules import Rules
from parity.causes import find_causes, find_single_causes
from parity.causes.precision.leaks import believable, leak_causes
from parity.judgement.input_noise import output_errors, perturbed, perturbed_gradients, shifted_gradients
from parity.judgement.rows import (
    float32_gradient_rows,
    float32_rows,
    gradient_rows,
    layer_rows,
    noise_floor,
)
from parity.judgement.small_elements import SmallOnes, small_gradients, small_ones, with_small_gradients
from parity.judgement.unverified import cancelled, unverified_gradients, unverified_layers, unverified_zeros
from parity.measure import cancellation
from parity.measure.gates import Gates, Reference, Row
from parity.pairing.match_calls import Pair, Pairing, aligned
from parity.pairing.repeated_calls import paired_by_value
from parity.pairing.shapes import Shapes
from parity.proof.float32_leaks import gradient_leaks, leaks
from parity.proof.module_derivatives import backward_rows
from parity.proof.prepare import prepare
from parity.proof.table_gates import TableGates, own_casts
from parity.recording.capture import Call, Key
from parity.recording.channels import Axes
from parity.recording.inputs import Apply, Arguments, positional
from parity.report.findings import Cause
from parity.runs.jax_side import JaxSide, Run
from parity.runs.losses import Loss, default_loss
from parity.runs.memory import release
from parity.runs.torch_side import Arrays, Gradients, TorchSide
from parity.trace.backward import derivative_rows
from parity.trace.stage import Traced, traced_rows
from parity.training_mode.train_mode import training_rows

PRECISIONS = ("float64", "float32")

MEMORY = 2.5
"""Default memory limit in GiB for models and activations together, excluding the two frameworks themselves."""

SECTION_BYTES = 256 * 2**20
"""Minimum size of the activations (float64, one framework) held at once, however large the models are.

If the activations do not fit, both models run again for each part of the layers.
"""

ACTIVATION_GRADIENT_BYTES = 64 * 2**20
"""Maximum total size of the activations, outer modules first, whose gradients are also compared."""


def fails(rows: Sequence[Row], **of: str) -> bool:
    """Return whether any row whose fields have the given values fails."""
    return any(not row.passed for row in rows if all(getattr(row, key) == value for key, value in of.items()))


@dataclasses.dataclass(frozen=True)
class Proof:
    """The stages of one check. Copies of the models are kept only as long as a stage needs them."""

    torch_model: torch.nn.Module
    jax_model: nnx.Module
    arrays: tuple[np.ndarray, ...]
    axes: tuple[Axes, ...]
    ledger: Ledger
    pairing: Pairing
    rules: Rules
    gates: Gates
    memory: float = MEMORY
    apply: Apply = positional
    notes: list[str] = dataclasses.field(default_factory=list)
    """Notes on what the stages so far did not verify."""
    by_values: bool = False
    """Whether the modules are compared by their values, since they do not correspond by name: see `parity.trace`."""
    missing: tuple[Row, ...] = ()
    """Failing rows: weights of PyTorch that JAX does not hold."""
    reference: Reference = "torch"
    """The side that is right by definition: its float32 errors determine the gates of the other's."""

    @classmethod
    def of(
        cls,
        torch_model: torch.nn.Module,
        jax_model: nnx.Module,
        inputs: Any,
        rules: Rules,
        gates: Gates,
        memory: float = MEMORY,
        reference: Reference = "torch",
    ) -> Proof:
        """Pair the tensors and calls of both models.

        Raises:
            ValueError: Some have no partner, the inputs are empty or not finite, or a `Program` draws random numbers.
        """
        arguments = Arguments.of(inputs)
        found = prepare(torch_model, jax_model, arguments, rules)
        return cls(
            found.tensors.torch_model,
            found.jax_model,
            arguments.arrays,
            found.axes,
            found.tensors.ledger,
            found.pairing,
            found.rules,
            gates,
            memory,
            arguments.apply,
            found.notes,
            found.by_values,
            found.tensors.missing,
            reference,
        )

    def in_other_order(self) -> Proof | None:
        """Return a proof that pairs repeated calls of a module by their values; None if the pairing does not change.

        The two models may call a shared module in a different order.
        """
        ours, theirs = self.torch_side("float64"), self.jax_side("float64")
        pairing = paired_by_value(self.pairing, ours, theirs, self.arrays)
        if pairing == self.pairing:
            return None
        moved = ", ".join(sorted({pair.torch[0] for pair in pairing.pairs if pair.torch[1] != pair.jax[1]}))
        note = f"called in another order in JAX, and paired by value: {moved}"
        return dataclasses.replace(self, pairing=pairing, notes=[*self.notes, note])

    @property
    def default_loss(self) -> Loss | None:
        """Default function to differentiate; None if the outputs cannot be compared."""
        if not self.pairing.comparable:
            return None
        root = self.pairing.root
        return default_loss(self.pairing.shapes[root.torch].outputs, root.output_axes)

    def torch_side(self, precision: str) -> TorchSide:
        return TorchSide.of(self.torch_model, precision, apply=self.apply, design=self.pairing.design)

    def jax_side(self, precision: str) -> JaxSide:
        return JaxSide.of(self.jax_model, precision, self.axes, apply=self.apply, design=self.pairing.design)

    def _references(self, section: Sequence[Pair], oracle: Arrays) -> Arrays:
        """Return PyTorch's calls of `section` in JAX's layout, and the outputs of their direct children."""
        own = {pair.torch for pair in section}
        found = {pair.jax: pair.reference(oracle[pair.torch]) for pair in self.pairing.with_children(section)}
        return {
            pair.jax: found[pair.jax] if pair.torch in own else Call(None, found[pair.jax].outputs)
            for pair in self.pairing.with_children(section)
        }

    def forward(self, precisions: Sequence[str] = PRECISIONS, tell: Callable[[str], None] | None = None) -> list[Row]:
        """Compare every layer, free and forced: JAX with PyTorch in float64, both in float32 with float64."""
        # Created on demand: the first program compiles while the sides of the others are created.
        torch_side, jax_side = functools.cache(self.torch_side), functools.cache(self.jax_side)
        double = torch_side("float64")
        sections = list(self.pairing.sections(self.section_bytes))
        rows: list[Row] = []
        with ThreadPoolExecutor(2) as pool:
            for i, section in enumerate(sections, 1):
                if i > 1:
                    release()
                if tell:
                    tell("every layer" + (f", part {i} of {len(sections)}" if len(sections) > 1 else ""))
                oracle = double.forward(self.arrays, only={pair.torch for pair in self.pairing.with_children(section)})
                references = self._references(section, oracle)
                keys = {pair.jax for pair in section}
                runs = {p: jax_side(p).both(pool, self.arrays, references, only=keys) for p in precisions}
                perturbed_run = double.forward(perturbed(self.arrays), only={pair.torch for pair in section})
                noise = noise_floor(section, oracle, perturbed_run)
                if "float64" in precisions:
                    small = self._small(section, references, perturbed_run, torch_side("float32"))
                    del perturbed_run
                    rows += self._section64(runs.pop("float64"), section, references, noise, small)
                    self.notes.extend(unverified_layers(section, references))
                if "float32" in precisions:
                    rows += self._section32(
                        torch_side("float32"), runs.pop("float32"), section, oracle, references, noise
                    )
        rows = self._judged(rows)
        return rows + own_casts(rows, self.pairing)

    def _judged(self, rows: Sequence[Row]) -> list[Row]:
        """Apply the gates for float32 tables and for tensors that are mostly rounding error to the rows."""
        found = cancellation.judged(self.tables.judged(rows))
        self.notes.extend([*unverified_zeros(found.zero), *cancelled(found.small)])
        return found.rows

    @functools.cached_property
    def tables(self) -> TableGates:
        return TableGates(self.pairing, self.gates)

    @property
    def all_notes(self) -> tuple[str, ...]:
        """Notes on what passed conditionally or was not verified, one sentence each."""
        return tuple(dict.fromkeys((*self.pairing.design.notes(), *self.tables.notes(), *self.notes)))

    def forward64(self) -> list[Row]:
        return self.forward(("float64",))

    def forward32(self) -> list[Row]:
        return self.forward(("float32",))

    @property
    def section_bytes(self) -> float:
        """Size of the activations to hold at once: the budget minus both models in both precisions."""
        weights = 8 * sum(math.prod(entry.torch_shape) for entry in self.ledger)
        return max((self.memory * 2**30 - 5.5 * weights) / 1.6, SECTION_BYTES)

    def _small(self, section: list[Pair], references: Arrays, perturbed_run: Arrays, ours: TorchSide) -> SmallOnes:
        """Return the elements that relF does not resolve, with the measured noise of each."""
        own = ours.forward(self.arrays, only={pair.torch for pair in section})
        draws = [_in_jax(section, calls) for calls in (own, perturbed_run)]
        return small_ones({pair.jax: references[pair.jax] for pair in section}, draws, self.gates.f64)

    def _section64(
        self,
        theirs: Run,
        section: list[Pair],
        references: Arrays,
        noise: Mapping[Key, float],
        small: SmallOnes,
    ) -> list[Row]:
        free = theirs(False)
        rows = layer_rows(section, references, free, "free", self.gates, noise, small)
        own = {pair.jax: references[pair.jax] for pair in section}
        rows += _leak_rows(leaks(section, own, free, [numbers for _, numbers in self.pairing.design.tables]))
        del free
        return rows + layer_rows(section, references, theirs(True), "forced", self.gates, None, small)

    def _section32(
        self,
        ours: TorchSide,
        theirs: Run,
        section: list[Pair],
        oracle: Arrays,
        references: Arrays,
        noise: Mapping[Key, float],
    ) -> list[Row]:
        torch_keys = {pair.torch for pair in section}
        own = _in_jax(section, ours.forward(self.arrays, only=torch_keys))
        free = theirs(False)
        rows = float32_rows(section, references, own, free, "free", self.gates, noise, reference=self.reference)
        del own, free
        forced = {key: Call(call.inputs if key in torch_keys else None, call.outputs) for key, call in oracle.items()}
        own = _in_jax(section, ours.forward(self.arrays, forced, only=torch_keys))
        forced32 = theirs(True)
        return rows + float32_rows(section, references, own, forced32, "forced", self.gates, reference=self.reference)

    def gradients(self, loss: Loss) -> list[Row]:
        """Compare the loss and the gradients of parameters, inputs and outer modules' outputs in both precisions."""
        release()
        chosen = self._activations()
        names = {pair.jax: pair.name for pair in chosen}
        wanted, given = self._both_gradients("float64", loss, chosen)
        rows = gradient_rows(wanted, given, self.gates, names=names)
        rows += _leak_rows(gradient_leaks(wanted.params, given.params, self.arrays))
        suspects = small_gradients(wanted, given, self.gates)
        self.notes.extend(unverified_gradients(wanted, given))
        del given
        release()
        ours, theirs = self._both_gradients("float32", loss, chosen)
        found = with_small_gradients(rows, suspects, [ours])
        roles = (ours, theirs) if self.reference == "torch" else (theirs, ours)
        found += float32_gradient_rows(wanted, *roles, self.gates, names=names)
        if not fails(found):
            return self._judged(found)
        # Measured only if it can change the verdict: the effect of rounding the inputs and parameters.
        perturbed_run = perturbed_gradients(self.torch_side("float64"), self.arrays, loss)
        shifted = None
        if not fails(rows, precision="float64"):  # the outputs of a wrong model do not measure rounding
            shifted = shifted_gradients(self.torch_side("float64"), self.arrays, loss, self._output_errors())
        rows = with_small_gradients(rows, suspects, [ours, perturbed_run])
        rows += float32_gradient_rows(
            wanted, *roles, self.gates, names=names, perturbed_run=perturbed_run, shifted=shifted
        )
        return self._judged(rows)

    def _output_errors(self) -> list[np.ndarray]:
        root = self.pairing.root
        wanted = self.torch_side("float64").forward(self.arrays, only={root.torch})[root.torch]
        if self.reference == "jax":
            given = self.torch_side("float32").forward(self.arrays, only={root.torch})[root.torch]
            return output_errors(wanted, given, (None,) * len(wanted.outputs))
        given = self.jax_side("float32").forward(self.arrays, only={root.jax})[root.jax]
        return output_errors(wanted, given, root.output_axes)

    def traced(self, rows: Sequence[Row]) -> Traced:
        """Compare every module by its values; `rows` are those of the models' outputs."""
        release()
        differ = fails(rows, kind="output", mode="free", precision="float64")
        sides = self.torch_side("float64"), self.jax_side("float64")
        return traced_rows(*sides, self.arrays, self.gates, differ=differ)

    def causes(self, rows: Sequence[Row]) -> tuple[Cause, ...]:
        """Return the causes of failing modules as far as they can be determined: see `parity.causes`."""
        shared = self.torch_side("float64"), self.jax_side("float64"), self.arrays, self.pairing, rows
        proven = leak_causes(*shared, self.gates)
        with shared[0].wide():
            found = believable(find_causes(*shared, self.notes), self.pairing, rows)
            if self.reference == "torch":
                found += find_single_causes(shared[0], self.jax_side("float32"), *shared[2:], self.notes)
            elif fails(rows, mode="forced", precision="float32"):
                self.notes.append("causes in float32 alone are looked for only if PyTorch is the reference")
        # A proven cast replaces all other causes of its module.
        return (*(cause for cause in found if cause.module not in proven), *proven.values())

    def derivatives(self, loss: Loss, rows: Sequence[Row]) -> tuple[list[Row], tuple[Cause, ...]]:
        """Compare every module's own derivative and find the causes: see `parity.proof.module_derivatives`.

        By values, only the modules are found at which the gradients (`rows`) first differ: see `parity.trace.backward`.
        """
        release()
        ours, theirs = self.torch_side("float64"), self.jax_side("float64")
        if self.by_values and fails(rows, precision="float64"):
            both = self._both_gradients("float64", loss, ())
            return derivative_rows(ours, theirs, self.arrays, loss, rows, self.gates, both)
        with ours.wide():
            rows, causes = backward_rows(ours, theirs, self.arrays, self.pairing, self.ledger, self.gates)
        self.notes.extend(cancelled([row.name for row in rows if row.gate > self.gates.f64_gradient]))
        return self.tables.judged(rows), causes

    def training(self, loss: Loss | None = None) -> tuple[list[Row], tuple[Cause, ...]]:
        """Compare training mode with shared random draws and find the causes (`parity.training_mode`)."""
        release()
        shared = self.arrays, self.axes, self.ledger, self.rules, self.gates
        rows, causes = training_rows(
            self.torch_model,
            self.jax_model,
            *shared,
            loss,
            self.apply,
            self.pairing.design,
            self.reference,
            whole=self.by_values,
        )
        return self._judged(rows), causes

    def _both_gradients(self, precision: str, loss: Loss, chosen: Collection[Pair]) -> tuple[Gradients, Gradients]:
        """Return the gradients of PyTorch (activations with JAX's keys and layout) and of JAX.

        JAX runs first: its backward pass needs the most memory, and PyTorch's gradients are not allocated yet.
        """
        named = self.torch_model.named_parameters(remove_duplicate=False)
        trained = [name for name, param in named if param.requires_grad]
        shapes = {pair.jax: _output_shapes(pair, self.pairing.shapes[pair.torch]) for pair in chosen}
        theirs = self.jax_side(precision).gradients(self.arrays, loss, self.ledger, trained, activations=shapes)
        release()
        ours = self.torch_side(precision).gradients(self.arrays, loss, activations={pair.torch for pair in chosen})
        ours = ours.within(self.ledger)
        activations = {pair.jax: aligned(ours.activations[pair.torch], pair.output_axes) for pair in chosen}
        return dataclasses.replace(ours, activations=activations), theirs

    def _activations(self) -> list[Pair]:
        """Return the calls whose output gradients are compared: outer ones first, as many as fit."""
        chosen, size = [], 0
        moving = [pair for pair in self.pairing.pairs if self.pairing.shapes[pair.torch].floating]
        for pair in sorted(moving, key=lambda pair: pair.torch[0].count(".")):
            size += 8 * sum(int(np.prod(shape)) for shape in self.pairing.shapes[pair.torch].outputs)
            if size > ACTIVATION_GRADIENT_BYTES:
                break
            chosen.append(pair)
        return chosen


def _leak_rows(found: Mapping[str, str]) -> list[Row]:
    return [Row(name, "leak", "free", "float64", math.inf, 0.0, note=text) for name, text in found.items()]


def _output_shapes(pair: Pair, shapes: Shapes) -> list[tuple[int, ...] | jax.ShapeDtypeStruct]:
    """Return the shapes of a call's outputs in JAX's layout; for complex outputs, a shape with a dtype."""
    found = [
        shape if axes is None else tuple(shape[axis] for axis in axes)
        for shape, axes in zip(shapes.outputs, pair.output_axes, strict=True)
    ]
    return [jax.ShapeDtypeStruct(x, np.complex64) if own else x for x, own in zip(found, shapes.complex, strict=True)]


def _in_jax(section: Sequence[Pair], calls: Arrays) -> Arrays:
    """Return PyTorch's calls with JAX's keys and layout."""
    return {pair.jax: pair.reference(calls[pair.torch]) for pair in section}
