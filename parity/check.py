"""The proof: two models, every layer, float64 first; then float32 judged by float64; gradients; training mode."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx

from parity.align import Axes, input_axes
from parity.backward import backward_rows
from parity.capture import Call, Key
from parity.causes import find_causes
from parity.compare import Gates, Row, real_numbers
from parity.convert import Ledger, build_ledger, to_numpy
from parity.elements import SmallOnes, is_small, small_gradients, small_ones, with_small_gradients
from parity.judge import (
    float32_gradient_rows,
    float32_rows,
    gradient_rows,
    layer_rows,
    noise_floor,
    weight_rows,
)
from parity.leaks import gradient_leaks, leaks
from parity.losses import Loss, default_loss
from parity.memory import release
from parity.pairing import Pair, Pairing, Shapes, aligned, pair_calls
from parity.precision import format_rows
from parity.report import Cause, Report
from parity.rules import Rules
from parity.runs import Arrays, Gradients, JaxSide, Run, TorchSide
from parity.shaken import shake, shaken_gradients
from parity.training import training_rows
from parity.unverified import uncalled, unverified_gradients, unverified_layers

LEVELS = ("forward", "gradients", "train")
PRECISIONS = ("float64", "float32")

MEMORY = 2.5
"""GiB that models and activations may take together, besides the two frameworks themselves."""

SECTION_BYTES = 256 * 2**20
"""The least of the activations (in float64, of one framework) that is held at once, however large the models are.

Where the activations do not fit, both models run again for each part of the layers.
"""

ACTIVATION_GRADIENT_BYTES = 64 * 2**20
"""How much of the activations, the outer modules first, has its gradients compared too."""


def check(
    torch_model: torch.nn.Module,
    jax_model: nnx.Module,
    inputs: Any,
    *,
    rules: Rules | None = None,
    level: str = "gradients",
    gates: Gates | None = None,
    loss: Loss | None = None,
    formats: bool = False,
    memory: float = MEMORY,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Proves, or refutes, that both models are the same: weights, every layer, output, loss, every gradient.

    Copies of the models run in evaluation mode; the models themselves stay as they are.

    Args:
        torch_model, jax_model: the pair, with the same weights (see `torch_to_jax`).
        inputs: one array, or a tuple of them, as PyTorch's model takes them (images N C H W; JAX's get N H W C).
        rules: what the pair needs besides the built-in rules.
        level: "forward"; "gradients" for the loss and all gradients too; "train" for training mode on top, with the
            same dropout masks in both.
        gates: the largest errors that pass; the defaults are derived in the docs.
        loss: what is differentiated; by default what has a gradient in every direction of every output.
        formats: report bfloat16 and the device's default matrix products too.
        memory: GiB that models and activations may take. Where they do not fit, the forward pass runs again for each
            part of the layers: more memory makes the check of a large model quicker.
        progress: called with a line before each stage.

    Returns:
        A report; `report.passed` says whether every gate holds.

    Raises:
        ValueError: the models cannot be compared: tensors or modules without a partner (all are listed).
    """
    if level not in LEVELS:
        raise ValueError(f"level {level!r} is not one of {', '.join(LEVELS)}")
    tell = progress or (lambda stage: None)
    start = time.perf_counter()
    tell("weights and modules")
    proof = Proof.of(torch_model, jax_model, inputs, rules or Rules(), gates or Gates(), memory)
    proof.notes.extend(uncalled(torch_model, proof.pairing))
    rows = weight_rows(proof.ledger, torch_model, jax_model)
    rows += proof.forward(tell=tell)
    causes: tuple[Cause, ...] = ()
    if _fails(rows, mode="forced"):
        tell("causes")
        causes = proof.causes([row for row in rows if not is_small(row)])  # by relF, which sees nothing there
    root = proof.pairing.root
    evaluation_loss = loss or default_loss(proof.pairing.shapes[root.torch].outputs, root.output_axes)
    if level != "forward":
        tell("gradients")
        gradients = proof.gradients(evaluation_loss)
        rows += gradients
        # A wrong gradient does not say where it comes from; where the forward pass is right, this does.
        if _fails(gradients, precision="float64") and not _fails(rows, mode="forced"):
            tell("derivative of every module")
            derivatives, found = proof.derivatives()
            rows, causes = rows + derivatives, causes + found
    if level == "train":
        tell("training mode")
        found_rows, found = proof.training(loss)
        rows, causes = rows + found_rows, causes + found
    if formats:
        tell("reduced formats")
    format_figures = format_rows(torch_model, proof.jax_side("float32"), proof.arrays, root) if formats else ()
    return Report(
        rows=tuple(rows),
        ledger=proof.ledger,
        layers=tuple((pair.name, type(pair.module).__name__) for pair in proof.pairing.pairs),
        unpaired=proof.pairing.unpaired,
        causes=causes,
        formats=tuple(format_figures),
        notes=tuple(dict.fromkeys(proof.notes)),
        settings={
            "level": level,
            "torch_model": type(torch_model).__name__,
            "jax_model": type(jax_model).__name__,
            "input_shapes": [list(x.shape) for x in proof.arrays],
            "loss": None if level == "forward" else evaluation_loss.name,
            "seconds": round(time.perf_counter() - start, 1),
        },
    )


def assert_parity(torch_model: torch.nn.Module, jax_model: nnx.Module, inputs: Any, **options: Any) -> Report:
    """`check`, for tests: raises AssertionError with the report unless every gate holds; returns the report."""
    report = check(torch_model, jax_model, inputs, **options)
    if not report.passed:
        raise AssertionError(f"the models differ\n{report}")
    return report


def _fails(rows: Sequence[Row], **of: str) -> bool:
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
        arrays = _inputs(inputs)
        axes = tuple(input_axes(x.ndim) for x in arrays)
        ledger = build_ledger(torch_model, jax_model, rules)
        # In the precision that runs faster: shapes are the same in either.
        sides = TorchSide.of(torch_model, "float32"), JaxSide.of(jax_model, "float32", axes)
        pairing = pair_calls(*sides, arrays, rules, torch_model)
        return cls(torch_model, jax_model, arrays, axes, ledger, pairing, rules, gates, memory)

    def torch_side(self, precision: str) -> TorchSide:
        return TorchSide.of(self.torch_model, precision)

    def jax_side(self, precision: str) -> JaxSide:
        return JaxSide.of(self.jax_model, precision, self.axes)

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
        return rows

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
        rows += _leak_rows(leaks(section, own, free))
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
        if not _fails(found):
            return found
        # Measured only where it may matter: what a rounding of the inputs and parameters changes.
        shaken = shaken_gradients(self.torch_side("float64"), self.arrays, loss)
        rows = with_small_gradients(rows, suspects, [ours, shaken])
        return rows + float32_gradient_rows(wanted, ours, theirs, self.gates, names=names, shaken=shaken)

    def causes(self, rows: Sequence[Row]) -> tuple[Cause, ...]:
        """Why modules fail, as far as it can be told: see `parity.causes`."""
        sides = self.torch_side("float64"), self.jax_side("float64")
        return find_causes(*sides, self.arrays, self.pairing, rows)

    def derivatives(self) -> tuple[list[Row], tuple[Cause, ...]]:
        """Every module's own derivative, and what is wrong with it: see `parity.backward`."""
        release()
        sides = self.torch_side("float64"), self.jax_side("float64")
        return backward_rows(*sides, self.arrays, self.pairing, self.ledger, self.gates)

    def training(self, loss: Loss | None = None) -> tuple[list[Row], tuple[Cause, ...]]:
        """Training mode with the same masks on both sides, and what is wrong there: see `parity.training`."""
        release()
        shared = self.arrays, self.axes, self.ledger, self.rules, self.gates
        return training_rows(self.torch_model, self.jax_model, *shared, loss)

    def _both_gradients(self, precision: str, loss: Loss, chosen: Collection[Pair]) -> tuple[Gradients, Gradients]:
        """PyTorch's (activations under JAX's names, in JAX's layout) and JAX's.

        JAX first: its backward pass needs the most memory, and PyTorch's gradients are not there yet.
        """
        trained = [name for name, param in self.torch_model.named_parameters() if param.requires_grad]
        shapes = {pair.jax: _output_shapes(pair, self.pairing.shapes[pair.torch]) for pair in chosen}
        theirs = self.jax_side(precision).gradients(self.arrays, loss, self.ledger, trained, activations=shapes)
        release()
        ours = self.torch_side(precision).gradients(self.arrays, loss, activations={pair.torch for pair in chosen})
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


def _inputs(inputs: Any) -> tuple[np.ndarray, ...]:
    """The inputs as numpy, floating ones in float64.

    Raises:
        ValueError: no input, an empty one, or one that is not finite.
    """
    arrays = [to_numpy(x) for x in (inputs if isinstance(inputs, tuple | list) else (inputs,))]
    if not arrays or any(x.size == 0 for x in arrays):
        raise ValueError("there is nothing to run on: the inputs are empty")
    if not all(np.isfinite(part).all() for x in arrays for part in real_numbers(x)):
        raise ValueError("the inputs hold NaN or infinity")
    return tuple(_rounded(x) for x in arrays)


def _rounded(array: np.ndarray) -> np.ndarray:
    """Rounded to float32 once, so that both precisions see the same numbers."""
    if np.iscomplexobj(array):
        return array.astype(np.complex64).astype(np.complex128)
    return array.astype(np.float32).astype(np.float64) if np.issubdtype(array.dtype, np.floating) else array
