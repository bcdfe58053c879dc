"""Compare training mode with the same random draws on both sides.

The random numbers of two frameworks never agree, so every random draw in training (any form of dropout, stochastic
depth, noise) is replaced by numbers shared between both models. The draws themselves are compared by distribution: the
probability, and the number of values per draw, which shows which elements share a value. See
`parity.random_draws.matching`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from flax import nnx

from parity.carry.convert import Entry, Ledger, jax_variables, to_numpy
from parity.carry.copies import torch_copy as copied
from parity.carry.dtypes import torch_in_precision
from parity.carry.program import Program
from parity.carry.rules import Rules
from parity.causes.training.steps import statistics_cause
from parity.judgement.input_noise import output_errors, perturbed_gradients, shifted_gradients
from parity.judgement.rows import float32_gradient_rows, gradient_rows, layer_rows
from parity.measure.gates import Gates, Reference, Row, rel_f
from parity.pairing.match_calls import Pairing, pair_calls
from parity.pairing.shapes import first_line
from parity.precision.by_design import Design
from parity.random_draws.jax_draws import quiet as quiet_jax
from parity.random_draws.matching import Handed, Matching, hand_out, match
from parity.random_draws.torch_draws import quiet as quiet_torch
from parity.random_draws.torch_draws import torch_sites
from parity.recording.channels import Axes
from parity.recording.inputs import Apply, positional
from parity.report.findings import Cause
from parity.runs.jax_side import JaxSide
from parity.runs.losses import Loss, default_loss
from parity.runs.torch_side import Gradients, TorchSide
from parity.training_mode.draw_rows import draw_causes, draw_rows, threshold_rows
from parity.training_mode.effects import other_thresholds, paired_by_effect
from parity.training_mode.jax_sites import jax_sites

RATES = ("p", "drop_prob", "rate")
"""Attribute names of the dropout rate in PyTorch modules: torch's, timm's, this project's."""


def training_rows(
    torch_model: torch.nn.Module,
    jax_model: nnx.Module,
    arrays: Sequence[np.ndarray],
    axes: Sequence[Axes],
    ledger: Ledger,
    rules: Rules,
    gates: Gates,
    loss: Loss | None = None,
    apply: Apply = positional,
    design: Design | None = None,
    reference: Reference = "torch",
    *,
    whole: bool = False,
) -> tuple[list[Row], tuple[Cause, ...]]:
    """Compare the distributions of random draws, and with shared draws loss, gradients and updated buffers.

    Args:
        whole: Whether only the calls of the models themselves are paired, since their modules do not correspond.

    Returns:
        The rows, and the causes of failures as far as they can be determined.
    """
    run = _Training(torch_model, jax_model, arrays, axes, ledger, gates, apply, design, reference)
    try:
        pairing = run.paired(rules, whole=whole)
        matching, rows = run.draws(rules)
    except Exception as error:  # a failure, since in evaluation mode both models ran and were paired
        return [_structure_row("", str(error) if isinstance(error, ValueError) else first_line(error))], ()
    rows += [_structure_row(name, why) for name, why in pairing.different]
    if not pairing.comparable:
        return rows, tuple(draw_causes(rows))
    loss = loss or default_loss(pairing.shapes[pairing.root.torch].outputs, pairing.root.output_axes)
    found, oracle = run.double(loss, *hand_out(matching))
    if matching.complete and not all(row.passed for row in found):
        again = paired_by_effect(matching, run.torch_side("float64"), run.jax_side("float64"), arrays)
        if again != matching:
            matching = again
            found, oracle = run.double(loss, *hand_out(matching))
    holds = all(row.passed for row in found)
    if matching.complete and holds:
        sides = run.torch_side("float64"), run.jax_side("float64")
        rows += threshold_rows(other_thresholds(matching, *sides, arrays))
    causes = draw_causes(rows)
    rows += found
    if matching.complete and not holds:
        rows += run.layers(pairing, *hand_out(matching))
    buffers, statistics = run.buffers(pairing, *hand_out(matching))
    rows += buffers
    rows += run.single(pairing, loss, oracle, *hand_out(matching), holds=holds)
    return rows, (*causes, *statistics)


def require_training(jax_model: Program, arrays: Sequence[np.ndarray], axes: Sequence[Axes], apply: Apply) -> None:
    """Trace an adapter's model in training mode, which is run as the user says.

    Raises:
        ValueError: It cannot be run in this way; the message says what to change.
    """
    try:
        with quiet_jax():
            JaxSide.of(jax_model, "float32", axes, training=True, apply=apply).shapes(arrays)
    except Exception as error:  # any exception of third-party code
        raise ValueError(f"JAX's model cannot be run in training mode: {first_line(error)}") from error


def _structure_row(name: str, why: str) -> Row:
    return Row(name, "structure", "train", "-", math.inf, 0.0, note=f"in training mode {why}")


@dataclasses.dataclass(frozen=True)
class _Training:
    """The runs of a pair of models in training mode."""

    torch_model: torch.nn.Module
    jax_model: nnx.Module
    arrays: Sequence[np.ndarray]
    axes: Sequence[Axes]
    ledger: Ledger
    gates: Gates
    apply: Apply = positional
    design: Design | None = None
    reference: Reference = "torch"

    def torch_side(self, precision: str) -> TorchSide:
        return TorchSide.of(self.torch_model, precision, training=True, apply=self.apply, design=self.design)

    def jax_side(self, precision: str) -> JaxSide:
        return JaxSide.of(self.jax_model, precision, self.axes, training=True, apply=self.apply, design=self.design)

    def paired(self, rules: Rules, *, whole: bool) -> Pairing:
        """Pair the calls of both models in training mode, with random draws disabled.

        Raises:
            ValueError: The calls do not correspond.
        """
        ours, theirs = self.torch_side("float64"), self.jax_side("float64")
        with quiet_torch(ours.model), quiet_jax():
            return pair_calls(ours, theirs, self.arrays, rules, self.torch_model, whole=whole)

    def draws(self, rules: Rules) -> tuple[Matching, list[Row]]:
        """Pair the random draws of both models and compare their distributions."""
        side = self.torch_side("float64")
        ours = torch_sites(side.model, lambda: side.apply(side.model, side.inputs(self.arrays)))
        theirs, unknown = jax_sites(self.jax_side("float64"), self.arrays)

        def partner(path: str) -> str:
            stacked, index = rules.stack_index(path)
            return rules.jax_path(path) if index is None else stacked

        matching = match(ours, theirs, partner)
        return matching, draw_rows(matching, theirs, unknown)

    def _gradients(self, precision: str, loss: Loss, ours: Handed, theirs: Handed) -> tuple[Gradients, Gradients]:
        wanted = self.torch_side(precision).gradients(self.arrays, loss, draws=ours).within(self.ledger)
        given = self.jax_side(precision).gradients(self.arrays, loss, self.ledger, wanted.params.keys(), draws=theirs)
        return wanted, given

    def double(self, loss: Loss, ours: Handed, theirs: Handed) -> tuple[list[Row], Gradients]:
        """Compare loss and gradients in float64; also return PyTorch's gradients."""
        wanted, given = self._gradients("float64", loss, ours, theirs)
        return gradient_rows(wanted, given, self.gates, mode="train"), wanted

    def single(
        self, pairing: Pairing, loss: Loss, oracle: Gradients, ours: Handed, theirs: Handed, *, holds: bool
    ) -> list[Row]:
        """Compare loss and gradients in float32 with float64. `holds`: whether the float64 comparison passed."""
        found = self._gradients("float32", loss, ours, theirs)
        roles = found if self.reference == "torch" else found[::-1]
        rows = float32_gradient_rows(oracle, *roles, self.gates, mode="train")
        if all(row.passed for row in rows):
            return rows
        # Measured only if it can change the verdict, as in evaluation mode.
        side, shifted = functools.partial(self.torch_side, "float64"), None
        perturbed_run = perturbed_gradients(side(), self.arrays, loss, ours)
        if holds:
            root = pairing.root
            wanted = side().forward(self.arrays, only={root.torch}, draws=ours)[root.torch]
            if self.reference == "torch":
                given = self.jax_side("float32").forward(self.arrays, only={root.jax}, draws=theirs)[root.jax]
                errors = output_errors(wanted, given, root.output_axes)
            else:
                given = self.torch_side("float32").forward(self.arrays, only={root.torch}, draws=ours)[root.torch]
                errors = output_errors(wanted, given, (None,) * len(wanted.outputs))
            shifted = shifted_gradients(side(), self.arrays, loss, errors, ours)
        return float32_gradient_rows(
            oracle, *roles, self.gates, mode="train", perturbed_run=perturbed_run, shifted=shifted
        )

    def layers(self, pairing: Pairing, ours: Handed, theirs: Handed) -> list[Row]:
        """Compare every module's output for the reference's inputs in float64; return the failing rows."""
        oracle = self.torch_side("float64").forward(self.arrays, draws=ours)
        references = {pair.jax: pair.reference(oracle[pair.torch]) for pair in pairing.pairs}
        calls = self.jax_side("float64").forward(self.arrays, references, draws=theirs)
        rows = layer_rows(pairing.pairs, references, calls, "train", self.gates)
        return [row for row in rows if not row.passed]

    def buffers(self, pairing: Pairing, ours: Handed, theirs: Handed) -> tuple[list[Row], list[Cause]]:
        """Compare the buffers that a forward pass changes, mainly running statistics, and find the causes."""
        after, side = self.torch_side("float64"), self.jax_side("float64")
        after.forward(self.arrays, draws=ours, only=())
        moved = _moved(self.ledger, self.torch_model, after.model, side)
        written = side.written(self.arrays, theirs)
        updated = side.updated(self.arrays, theirs) if moved or written else {}
        moved += [e for e in self.ledger if e.jax in written and e not in moved and _changes(e, side, updated)]
        rows = _buffer_rows(moved, updated, after.model, self.gates)
        wrong = [entry for entry, row in zip(moved, rows, strict=True) if not row.passed]
        return rows, _statistics_causes(self.torch_model, after.model, updated, wrong, pairing.shapes)


def _statistics_causes(
    before: torch.nn.Module,
    after: torch.nn.Module,
    theirs: Mapping[str, np.ndarray],
    wrong: Sequence[Entry],
    shapes: Any,
) -> list[Cause]:
    """Determine from one step the update rule of JAX's running statistics."""
    modules, old, new = dict(after.named_modules()), before.state_dict(), after.state_dict()
    causes = []
    for entry in wrong:
        path = entry.torch.rpartition(".")[0]
        momentum = _momentum(modules[path], old, path)
        if momentum is None or not shapes.get((path, 0)):
            continue
        shape = shapes[path, 0].inputs[0]
        states = to_numpy(old[entry.torch].double()), to_numpy(new[entry.torch]), entry.to_torch(theirs[entry.jax])
        cause = statistics_cause(*states, momentum, math.prod(shape) // shape[1])
        if cause is not None:
            causes.append(Cause(path, cause.switch, cause.description, cause.error_before, cause.error_after))
    return [cause for cause in causes if not any(_says_more(other, cause) for other in causes)]


def _momentum(module: torch.nn.Module, state: Mapping[str, torch.Tensor], path: str) -> float | None:
    """Return the weight of the new value; with momentum None, PyTorch averages all batches: 1 / number of batches."""
    counted = state.get(f"{path}.num_batches_tracked")
    momentum = getattr(module, "momentum", None)
    return 1.0 / (int(counted) + 1) if momentum is None and counted is not None else momentum


def _says_more(other: Cause, cause: Cause) -> bool:
    """Return whether another cause of the same module includes this cause's switch and a further one."""
    return other.module == cause.module and cause.switch in other.switch and cause.switch != other.switch


def _rate_name(module: torch.nn.Module) -> str | None:
    return next((name for name in RATES if isinstance(getattr(module, name, None), float | int)), None)


def silenced(torch_model: torch.nn.Module, jax_model: nnx.Module, rules: Rules) -> tuple[torch.nn.Module, nnx.Module]:
    """Return copies of both models with all dropout rates set to 0."""
    torch_copy, jax_copy = copied(torch_model), nnx.clone(jax_model)
    dropouts = {
        ".".join(map(str, path)): module
        for path, module in nnx.iter_modules(jax_copy)
        if isinstance(module, nnx.Dropout)
    }
    for module in dropouts.values():
        module.rate = 0.0
    for path, torch_module in torch_copy.named_modules():
        name = _rate_name(torch_module)
        if name and (rules.jax_path(path) in dropouts or isinstance(torch_module, torch.nn.modules.dropout._DropoutNd)):
            setattr(torch_module, name, 0.0)
    return torch_copy, jax_copy


def _moved(ledger: Ledger, before: torch.nn.Module, after: torch.nn.Module, theirs: JaxSide) -> list[Entry]:
    """Return tensors that PyTorch's forward pass changes in training, and JAX's running statistics."""
    old, new = before.state_dict(), after.state_dict()
    statistics = {name for name, v in jax_variables(theirs.model).items() if isinstance(v, nnx.BatchStat)}

    def moves(entry: Entry) -> bool:
        before, after = (torch_in_precision(state[entry.torch], torch.float64) for state in (old, new))
        return not np.array_equal(to_numpy(before), to_numpy(after))

    full = [entry for entry in ledger if 0 not in entry.torch_shape]
    return [entry for entry in full if entry.jax in statistics or moves(entry)]


def _changes(entry: Entry, theirs: JaxSide, updated: Mapping[str, np.ndarray]) -> bool:
    """Return whether JAX's forward pass changes the values of a tensor."""
    before = np.asarray(jax_variables(theirs.model)[entry.jax][...])
    return before.size > 0 and not np.array_equal(before, updated[entry.jax], equal_nan=before.dtype.kind in "fc")


def _buffer_rows(
    moved: Sequence[Entry], theirs: Mapping[str, np.ndarray], after: torch.nn.Module, gates: Gates
) -> list[Row]:
    new = after.state_dict()
    errors = [rel_f(entry.to_torch(theirs[entry.jax]), to_numpy(new[entry.torch])) for entry in moved]
    return [Row(e.torch, "buffer", "train", "float64", x, gates.f64) for e, x in zip(moved, errors, strict=True)]
