"""Find the module whose derivative is wrong, where JAX's modules do not correspond to PyTorch's.

The gradients of the loss by the outputs of PyTorch's modules are among the values of JAX's program that computes the
gradients. Backwards from the loss, the first one that is missing was computed by the module that uses that output.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch

from parity.causes.training.whole_model import whole_gradient_cause
from parity.measure.gates import Gates, Row
from parity.recording.capture import ROOT, Key
from parity.report.findings import Cause
from parity.runs.jax_side import JaxSide
from parity.runs.losses import Loss
from parity.runs.torch_side import Gradients, TorchSide
from parity.trace.regions import name
from parity.trace.values.fingerprint import Fingerprint
from parity.trace.values.jax_values import Step, run
from parity.trace.values.match import Matches, Targets, located, match
from parity.trace.values.program import Program, traced, traced_gradients
from parity.trace.values.source import jax_line
from parity.trace.values.torch_operations import ModuleCall, TorchTrace, trace_torch


def derivative_rows(
    ours: TorchSide,
    theirs: JaxSide,
    arrays: Sequence[np.ndarray],
    loss: Loss,
    rows: Sequence[Row],
    gates: Gates,
    both: tuple[Gradients, Gradients],
) -> tuple[list[Row], tuple[Cause, ...]]:
    """Return a failing row for the modules at which the gradients of both models, in float64, first differ; and causes.

    Call this if the models' outputs are equal and their gradients are not; `rows` are those of the gradients, and
    `both` the gradients of PyTorch and JAX. If one change in PyTorch explains all gradients of JAX, it is the cause,
    and the row is that of its module.
    """
    trace = trace_torch(ours, arrays)
    keys = [call.key for call in trace.calls if call.key != ROOT and call.outputs]
    gradients = ours.gradients(arrays, loss, activations=keys).activations
    own = [row for row in rows if row.kind == "gradient" and row.precision == "float64"]
    right = {row.name for row in own if row.passed}
    with theirs.switches():
        found = _found(gradients, traced_gradients(theirs, arrays, loss))
        missing = [call for call in reversed(trace.calls) if call.key in gradients and call.key not in found]
        wrong = [call for call in missing if not _trained_right(ours.model, call, right)]
        matches = match(trace, traced(theirs, arrays), {}) if wrong else None
    if matches is None:  # every activation's gradient is right: the wrong ones are those of single parameters
        owners = list(dict.fromkeys(row.name.rpartition(".")[0] for row in own if not row.passed))
        note = "the gradient of its own parameter differs" + _padding(ours.model, owners)
    else:
        owners, lines = _users(trace, wrong[0]), _lines(wrong[0], matches)
        where = f", in JAX {', '.join(lines)}" if lines else ""
        note = f"the gradient by the output of {name(wrong[0].key)} differs, and no later one{where}"
    with ours.wide():
        cause = whole_gradient_cause(
            ours.model,
            ours.inputs(arrays),
            ours.apply,
            both[0].params,
            both[1].params,
            [gradient for _, gradient in both[0].outputs],
            _suspects(trace, owners),
            gates.f64_gradient,
        )
    if cause is not None:
        owners = ["" if cause.module == "the model" else cause.module]
    gate = gates.f64_gradient
    derivatives = [Row(owner, "derivative", "forced", "float64", math.inf, gate, note=note) for owner in owners]
    return derivatives, () if cause is None else (cause,)


def _suspects(trace: TorchTrace, owners: Sequence[str]) -> list[str]:
    """Return the modules to look into: the owners, those around them, next to them and inside them."""
    paths = [owner.partition("#")[0] for owner in owners]
    called = list(dict.fromkeys(call.key[0] for call in trace.calls))
    inside = [x for x in called if any(x.startswith(f"{path}.") and path for path in paths)]
    around = [".".join(path.split(".")[:count]) for path in paths for count in reversed(range(path.count(".") + 1))]
    places = [called.index(path) for path in paths if path in called]
    near = [called[i + d] for i in places for d in (1, -1, 2, -2) if 0 <= i + d < len(called)]
    return list(dict.fromkeys((*paths, *around, "", *near, *inside)))


def _trained_right(model: torch.nn.Module, call: ModuleCall, right: Collection[str]) -> bool:
    """Return whether a module has parameters and their gradients are right: then so is that by its output.

    JAX need not compute that one, for example if a table of positions is repeated for every example.
    """
    path = f"{call.key[0]}." if call.key[0] else ""
    names = [f"{path}{name}" for name, _ in model.get_submodule(call.key[0]).named_parameters()]
    return bool(names) and all(name in right for name in names)


def _padding(model: torch.nn.Module, paths: Sequence[str]) -> str:
    tables = (model.get_submodule(path) for path in paths)
    rows = {x.padding_idx for x in tables if isinstance(x, torch.nn.Embedding) and x.padding_idx is not None}
    return "".join(f" (PyTorch does not train row {row}: padding_idx)" for row in sorted(rows))


def _found(gradients: Mapping[Key, Sequence[np.ndarray]], program: Program) -> set[Key]:
    """Return the calls whose gradients are among the values of the program, or cannot be recognised."""
    places = [(key, Fingerprint.of(x)) for key, tensors in gradients.items() for x in tensors]
    targets = Targets([values for _, values in places])
    seen_ = {i for i, (_, values) in enumerate(places) if not values.identifies}

    def seen(step: Step) -> None:
        array = np.asarray(step.array)
        if array.dtype.kind == "f" and targets.may_hold(array.shape):
            seen_.update(targets.equal(Fingerprint.of(array)))

    run(program.closed, program.arguments, seen)
    return {key for key in gradients if all(i in seen_ for i, (other, _) in enumerate(places) if other == key)}


def _users(trace: TorchTrace, call: ModuleCall) -> list[str]:
    """Return the modules that compute with the output of a call: the innermost that run the operations."""
    users = trace.users()
    outputs = {i for tensor in call.outputs for i in tensor.operations}
    owners = [trace.operations[user].owner for i in sorted(outputs) for user in users[i]]
    return [name(owner) for owner in dict.fromkeys(owners)] or [name(ROOT)]


def _lines(call: ModuleCall, matches: Matches) -> list[str]:
    """Return the lines of the JAX code that use the output of a call."""
    numbers = set(located(call, matches) or ())
    users = [i for i, inputs in enumerate(matches.inputs) if not numbers.isdisjoint(inputs)]
    lines = (jax_line(matches.scopes[i]) for i in users)
    return list(dict.fromkeys(line for line in lines if line))[:4]
