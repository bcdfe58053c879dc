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

from parity.carry.convert import Ledger, build_ledger
from parity.carry.rules import Rules
from parity.carry.wrappers import refuse_compiled, tied_modules
from parity.causes import find_causes, find_single_causes
from parity.causes.precision.leaks import believable, leak_causes
from parity.judgement.input_noise import output_errors, shake, shaken_gradients, shifted_gradients
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
from parity.measure.gates import Gates, Row
from parity.pairing.input_layouts import fitting_inputs
from parity.pairing.match_calls import Pair, Pairing, aligned, pair_calls, with_design
from parity.pairing.repeated_calls import paired_by_value
from parity.pairing.shapes import Shapes
from parity.proof.float32_leaks import gradient_leaks, leaks
from parity.proof.module_derivatives import backward_rows
from parity.proof.table_gates import TableGates, own_casts
from parity.recording.align import input_axes
from parity.recording.capture import Call, Key
from parity.recording.channels import Axes
from parity.recording.inputs import Apply, Arguments, positional
from parity.recording.transformations import has_paths, with_paths
from parity.report.findings import Cause
from parity.runs.jax_side import JaxSide, Run
from parity.runs.losses import Loss, default_loss
from parity.runs.memory import release
from parity.runs.torch_side import Arrays, Gradients, TorchSide
from parity.training_mode.train_mode import training_rows

PRECISIONS = ("float64", "float32")

MEMORY = 2.5
"""GiB that models and activations may take together, besides the two frameworks themselves."""

SECTION_BYTES = 256 * 2**20
"""The least of the activations (in float64, of one framework) that is held at once, however large the models are.

Where the activations do not fit, both models run again for each part of the layers.
"""

ACTIVATION_GRADIENT_BYTES = 64 * 2**20
"""How much of the activations, the outer modules first, has its gradients compared too."""


def fails(rows: Sequence[Row], **of: str) -> bool:
    """Whether one of these rows fails, among those whose fields are as given."""
    return any(not row.passed for row in rows if all(getattr(row, key) == value for key, value in of.items()))


@dataclasses.dataclass(frozen=True)
class Proof:
    """The stages of one check. Copies of the models live only as long as a stage needs them."""

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
    """What the stages so far did not verify."""

    @classmethod
    def of(
        cls,
        torch_model: torch.nn.Module,
        jax_model: nnx.Module,
        inputs: Any,
        rules: Rules,
        gates: Gates,
        memory: float = MEMORY,
    ) -> Proof:
        """Pairs tensors and calls.

        Raises:
            ValueError: some have no partner; or the inputs are empty or not finite.
        """
        arguments = Arguments.of(inputs)
        refuse_compiled(torch_model)
        ledger = build_ledger(torch_model, jax_model, rules)
        rules = dataclasses.replace(rules, unpaired=(*rules.unpaired, *tied_modules(ledger, torch_model)))
        usual = tuple(input_axes(x.ndim) for x in arguments.arrays)
        ours = TorchSide.as_configured(torch_model, arguments.apply)
        theirs = JaxSide.as_configured(jax_model, ours.precision, usual, arguments.apply)
        notes: list[str | None] = []
        if not ours.runs(arguments.arrays):
            notes.append(f"not compared as configured, since PyTorch's model does not run in {ours.precision} here")
            ours = TorchSide.of(torch_model, "float32", apply=arguments.apply)
            theirs = JaxSide.of(jax_model, "float32", usual, apply=arguments.apply)
        theirs, note = fitting_inputs(ours, theirs, arguments.arrays, rules)
        if has_paths(theirs.model):
            jax_model = with_paths(jax_model)
        pairing = pair_calls(ours, theirs, arguments.arrays, rules, torch_model)
        notes += [note, _output_note(pairing)]
        # In float64: so it shows what casts to less.
        ours = TorchSide.of(torch_model, "float64", apply=arguments.apply)
        theirs = JaxSide.of(jax_model, "float64", theirs.input_axes, apply=arguments.apply)
        pairing = with_design(pairing, ours, theirs, arguments.arrays, torch_model)
        return cls(
            torch_model,
            jax_model,
            arguments.arrays,
            tuple(theirs.input_axes),
            ledger,
            pairing,
            rules,
            gates,
            memory,
            arguments.apply,
            [text for text in notes if text is not None],
        )

    def in_other_order(self) -> Proof | None:
        """With the calls of modules that are called several times paired by their values; None if that changes nothing.

        Both models may call a shared module in another order.
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
        """What is differentiated unless the user says otherwise; None where the outputs cannot be compared."""
        if not self.pairing.comparable:
            return None
        root = self.pairing.root
        return default_loss(self.pairing.shapes[root.torch].outputs, root.output_axes)

    def torch_side(self, precision: str) -> TorchSide:
        return TorchSide.of(self.torch_model, precision, apply=self.apply, design=self.pairing.design)

    def jax_side(self, precision: str) -> JaxSide:
        return JaxSide.of(self.jax_model, precision, self.axes, apply=self.apply, design=self.pairing.design)

    def _references(self, section: Sequence[Pair], oracle: Arrays) -> Arrays:
        """PyTorch's calls in JAX's layout: all of `section`, and the outputs alone of what is right inside it."""
        own = {pair.torch for pair in section}
        found = {pair.jax: pair.reference(oracle[pair.torch]) for pair in self.pairing.with_children(section)}
        return {
            pair.jax: found[pair.jax] if pair.torch in own else Call(None, found[pair.jax].outputs)
            for pair in self.pairing.with_children(section)
        }

    def forward(self, precisions: Sequence[str] = PRECISIONS, tell: Callable[[str], None] | None = None) -> list[Row]:
        """Every layer, free and forced: float64 against PyTorch, float32 of both against float64; noise floors."""
        # Made when they are needed: the first program compiles while the others' sides are made.
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
                shaken = double.forward(shake(self.arrays), only={pair.torch for pair in section})
                noise = noise_floor(section, oracle, shaken)
                if "float64" in precisions:
                    small = self._small(section, references, shaken, torch_side("float32"))
                    del shaken
                    rows += self._section64(runs.pop("float64"), section, references, noise, small)
                    self.notes.extend(unverified_layers(section, references))
                if "float32" in precisions:
                    rows += self._section32(
                        torch_side("float32"), runs.pop("float32"), section, oracle, references, noise
                    )
        rows = self._judged(rows)
        return rows + own_casts(rows, self.pairing)

    def _judged(self, rows: Sequence[Row]) -> list[Row]:
        """The rows, with the gates of float32 tables and of tensors that are mostly rounding."""
        found = cancellation.judged(self.tables.judged(rows))
        self.notes.extend([*unverified_zeros(found.zero), *cancelled(found.small)])
        return found.rows

    @functools.cached_property
    def tables(self) -> TableGates:
        return TableGates(self.pairing, self.gates)

    @property
    def all_notes(self) -> tuple[str, ...]:
        """What passed with a condition or was not verified, a sentence each."""
        return tuple(dict.fromkeys((*self.pairing.design.notes(), *self.tables.notes(), *self.notes)))

    def forward64(self) -> list[Row]:
        return self.forward(("float64",))

    def forward32(self) -> list[Row]:
        return self.forward(("float32",))

    @property
    def section_bytes(self) -> float:
        """How much of the activations to hold at once: what both models, in both precisions, leave of the budget."""
        weights = 8 * sum(math.prod(entry.torch_shape) for entry in self.ledger)
        return max((self.memory * 2**30 - 5.5 * weights) / 1.6, SECTION_BYTES)

    def _small(self, section: list[Pair], references: Arrays, shaken: Arrays, ours: TorchSide) -> SmallOnes:
        """The elements that relF does not resolve, and how noisy each of them is."""
        own = ours.forward(self.arrays, only={pair.torch for pair in section})
        draws = [_in_jax(section, calls) for calls in (own, shaken)]
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
        rows = float32_rows(section, references, own, free, "free", self.gates, noise)
        del own, free
        forced = {key: Call(call.inputs if key in torch_keys else None, call.outputs) for key, call in oracle.items()}
        own = _in_jax(section, ours.forward(self.arrays, forced, only=torch_keys))
        return rows + float32_rows(section, references, own, theirs(True), "forced", self.gates)

    def gradients(self, loss: Loss) -> list[Row]:
        """Loss and gradients of every parameter, the inputs, and the outputs of the outer modules; both precisions."""
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
        found += float32_gradient_rows(wanted, ours, theirs, self.gates, names=names)
        if not fails(found):
            return self._judged(found)
        # Measured only where it may matter: what a rounding of the inputs and parameters changes.
        shaken = shaken_gradients(self.torch_side("float64"), self.arrays, loss)
        shifted = None
        if not fails(rows, precision="float64"):  # a wrong model's outputs say nothing of rounding
            shifted = shifted_gradients(self.torch_side("float64"), self.arrays, loss, self._output_errors())
        rows = with_small_gradients(rows, suspects, [ours, shaken])
        rows += float32_gradient_rows(wanted, ours, theirs, self.gates, names=names, shaken=shaken, shifted=shifted)
        return self._judged(rows)

    def _output_errors(self) -> list[np.ndarray]:
        root = self.pairing.root
        wanted = self.torch_side("float64").forward(self.arrays, only={root.torch})[root.torch]
        given = self.jax_side("float32").forward(self.arrays, only={root.jax})[root.jax]
        return output_errors(wanted, given, root.output_axes)

    def causes(self, rows: Sequence[Row]) -> tuple[Cause, ...]:
        """Why modules fail, as far as it can be told: see `parity.causes`."""
        shared = self.torch_side("float64"), self.jax_side("float64"), self.arrays, self.pairing, rows
        proven = leak_causes(*shared, self.gates)
        with shared[0].wide():
            found = believable(find_causes(*shared, self.notes), self.pairing, rows)
            found += find_single_causes(shared[0], self.jax_side("float32"), *shared[2:], self.notes)
        # A cast that is proven says more than any other cause of its module.
        return (*(cause for cause in found if cause.module not in proven), *proven.values())

    def derivatives(self) -> tuple[list[Row], tuple[Cause, ...]]:
        """Every module's own derivative, and what is wrong with it: see `parity.proof.module_derivatives`."""
        release()
        ours, theirs = self.torch_side("float64"), self.jax_side("float64")
        with ours.wide():
            rows, causes = backward_rows(ours, theirs, self.arrays, self.pairing, self.ledger, self.gates)
        self.notes.extend(cancelled([row.name for row in rows if row.gate > self.gates.f64_gradient]))
        return self.tables.judged(rows), causes

    def training(self, loss: Loss | None = None) -> tuple[list[Row], tuple[Cause, ...]]:
        """Training mode with the same random draws on both sides, and its causes (`parity.training_mode`)."""
        release()
        shared = self.arrays, self.axes, self.ledger, self.rules, self.gates
        rows, causes = training_rows(self.torch_model, self.jax_model, *shared, loss, self.apply, self.pairing.design)
        return self._judged(rows), causes

    def _both_gradients(self, precision: str, loss: Loss, chosen: Collection[Pair]) -> tuple[Gradients, Gradients]:
        """PyTorch's (activations under JAX's names, in JAX's layout) and JAX's.

        JAX first: its backward pass needs the most memory, and PyTorch's gradients are not there yet.
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
        """The calls whose outputs have their gradients compared: the outer ones first, as many as fit."""
        chosen, size = [], 0
        moving = [pair for pair in self.pairing.pairs if self.pairing.shapes[pair.torch].floating]
        for pair in sorted(moving, key=lambda pair: pair.torch[0].count(".")):
            size += 8 * sum(int(np.prod(shape)) for shape in self.pairing.shapes[pair.torch].outputs)
            if size > ACTIVATION_GRADIENT_BYTES:
                break
            chosen.append(pair)
        return chosen


def _output_note(pairing: Pairing) -> str | None:
    """What to say of the layout of the model's own outputs, where it is not PyTorch's."""
    axes = pairing.root.output_axes if pairing.comparable else ()
    moved = [f"output {i} with its channels last, {own}" for i, own in enumerate(axes) if own is not None]
    return f"JAX's model returns {', '.join(moved)}" if moved else None


def _leak_rows(found: Mapping[str, str]) -> list[Row]:
    return [Row(name, "leak", "free", "float64", math.inf, 0.0, note=text) for name, text in found.items()]


def _output_shapes(pair: Pair, shapes: Shapes) -> list[tuple[int, ...] | jax.ShapeDtypeStruct]:
    """The shapes of a call's outputs in JAX's layout; with the type, of those that are complex."""
    found = [
        shape if axes is None else tuple(shape[axis] for axis in axes)
        for shape, axes in zip(shapes.outputs, pair.output_axes, strict=True)
    ]
    return [jax.ShapeDtypeStruct(x, np.complex64) if own else x for x, own in zip(found, shapes.complex, strict=True)]


def _in_jax(section: Sequence[Pair], calls: Arrays) -> Arrays:
    """PyTorch's calls under JAX's names and in JAX's layout."""
    return {pair.jax: pair.reference(calls[pair.torch]) for pair in section}
