"""Preparation of a check: the tensors of both models are paired, then the calls of their modules."""

from __future__ import annotations

import copy
import dataclasses
import glob
import math
from collections.abc import Mapping

import numpy as np
import torch
from flax import nnx

from parity.by_value.ledger import ledger_by_value
from parity.carry.arrays import dtype_name, to_numpy, to_tensor
from parity.carry.convert import Entry, Ledger, build_ledger, jax_variables
from parity.carry.ledger import UnpairedTensorsError
from parity.carry.orientation import ASSUMED
from parity.carry.program import Program
from parity.carry.rules import TORCH_ONLY, LeafRule, Rules, matches, slices
from parity.carry.wrappers import refuse_compiled, state_of, tied_modules
from parity.measure.gates import Row
from parity.pairing.input_layouts import fitting_inputs
from parity.pairing.match_calls import Pairing, UnpairedError, pair_calls, with_design
from parity.random_draws.in_program import refuse_draws
from parity.recording.align import input_axes
from parity.recording.channels import Axes
from parity.recording.inputs import Arguments
from parity.recording.output_names import aligned_by_order, with_names
from parity.recording.own_calls import jax_called, torch_called
from parity.recording.transformations import has_paths, with_paths
from parity.runs.jax_side import JaxSide
from parity.runs.torch_side import TorchSide

LISTED = 3
"""Number of names or problems in one note."""


@dataclasses.dataclass(frozen=True)
class Tensors:
    """The paired tensors of two models.

    Attributes:
        torch_model: PyTorch's model; a copy if two of its biases are one in JAX: the copy holds them in the first.
        missing: A failing row for each weight of PyTorch whose values JAX does not hold.
        notes: What was assumed.
    """

    torch_model: torch.nn.Module
    ledger: Ledger
    missing: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a check starts from; the attributes are those of `parity.proof.stages.Proof`."""

    jax_model: nnx.Module
    axes: tuple[Axes, ...]
    tensors: Tensors
    pairing: Pairing
    rules: Rules
    notes: list[str]
    by_values: bool


def prepare(torch_model: torch.nn.Module, jax_model: nnx.Module, arguments: Arguments, rules: Rules) -> Prepared:
    """Pair the tensors and calls of both models, and align their outputs: by name, else by order.

    Raises:
        ValueError: Some have no partner, the inputs are empty or not finite, or a `Program` draws random numbers.
    """
    found = _prepare(torch_model, jax_model, arguments, rules)
    forms = found.pairing.forms
    if forms is None or not aligned_by_order(*forms):
        return found
    if not found.pairing.comparable:
        # The order of a sequence need not be the alphabetical order of the names on the other side.
        torch_model = torch_called(torch_model, lambda model, *x, **names: with_names(model(*x, **names), forms[1]))
        jax_model = jax_called(jax_model, lambda model, *x, **names: with_names(model(*x, **names), forms[0]))
        found = _prepare(torch_model, jax_model, arguments, rules)
    if found.pairing.comparable:
        found.notes.append("some outputs have names on one side only: they are aligned by order")
    return found


def _prepare(torch_model: torch.nn.Module, jax_model: nnx.Module, arguments: Arguments, rules: Rules) -> Prepared:
    refuse_compiled(torch_model)
    tensors = paired_tensors(torch_model, jax_model, rules)
    torch_model = tensors.torch_model
    rules = dataclasses.replace(rules, unpaired=(*rules.unpaired, *tied_modules(tensors.ledger, torch_model)))
    usual = tuple(input_axes(x.ndim) for x in arguments.arrays)
    ours = TorchSide.as_configured(torch_model, arguments.apply)
    theirs = JaxSide.as_configured(jax_model, ours.precision, usual, arguments.apply)
    notes: list[str | None] = [*tensors.notes]
    if not ours.runs(arguments.arrays):
        notes.append(f"not compared as configured, since PyTorch's model does not run in {ours.precision} here")
        ours = TorchSide.of(torch_model, "float32", apply=arguments.apply)
        theirs = JaxSide.of(jax_model, "float32", usual, apply=arguments.apply)
    theirs, note = fitting_inputs(ours, theirs, arguments.arrays, rules)
    if has_paths(theirs.model):
        jax_model = with_paths(jax_model)
    by_values = isinstance(jax_model, Program)
    try:
        pairing = pair_calls(ours, theirs, arguments.arrays, rules, torch_model, whole=by_values)
    except UnpairedError as error:
        by_values = True
        pairing = pair_calls(ours, theirs, arguments.arrays, rules, torch_model, whole=True)
        notes.append(f"modules are compared by their values, since they do not correspond by name ({error})")
    notes += [note, _output_note(pairing)]
    if isinstance(jax_model, Program):
        refuse_draws(theirs.program(arguments.arrays)[0], jax_model.title)
    # In float64, so that casts to a lower precision show.
    ours = TorchSide.of(torch_model, "float64", apply=arguments.apply)
    theirs = JaxSide.of(jax_model, "float64", theirs.input_axes, apply=arguments.apply)
    pairing = with_design(pairing, ours, theirs, arguments.arrays, torch_model)
    given = [text for text in notes if text is not None]
    return Prepared(jax_model, tuple(theirs.input_axes), tensors, pairing, rules, given, by_values)


def _output_note(pairing: Pairing) -> str | None:
    """Return a note on the layout of the model's outputs if it differs from PyTorch's."""
    axes = pairing.root.output_axes if pairing.comparable else ()
    moved = [f"output {i} with its channels last, {own}" for i, own in enumerate(axes) if own is not None]
    return f"JAX's model returns {', '.join(moved)}" if moved else None


# Tensors


def paired_tensors(torch_model: torch.nn.Module, jax_model: nnx.Module, rules: Rules) -> Tensors:
    """Pair the tensors by name and, if they do not correspond by name, by their values.

    Values decide only if no rules say how tensors correspond, and if they give a partner to a tensor that has none by
    name. A weight of PyTorch whose values JAX does not hold is then a failing row. Other tensors without a partner
    (buffers of PyTorch, such as masks and tables, and tensors of JAX) are notes of the ledger.

    Raises:
        ValueError: See `build_ledger`. Pairing by values does not help: it finds less than half of the tensors.
    """
    try:
        ledger = _oriented(build_ledger(torch_model, jax_model, rules), torch_model, jax_model)
        return _with_added(ledger, torch_model, jax_model)
    except UnpairedTensorsError as error:
        if rules.tensors or rules.leaves or rules.rename or rules.stacked:
            raise
        found = _by_value(torch_model, jax_model, rules, error)
        if found is None:
            raise
        return found


def _oriented(ledger: Ledger, torch_model: torch.nn.Module, jax_model: nnx.Module) -> Ledger:
    """Let the values decide the layout of the square matrices of a `Program`, which was assumed by their names."""
    if not isinstance(jax_model, Program):
        return ledger
    state, variables = state_of(torch_model), jax_variables(jax_model)
    entries, decided = [], True
    for entry in ledger:
        if entry.is_whole and len(entry.torch_shape) == 2 and len(set(entry.torch_shape + entry.jax_shape)) == 1:
            ours, theirs = to_numpy(state[entry.torch]), np.asarray(variables[entry.jax][...])
            other = dataclasses.replace(entry, axes=None if entry.axes == (1, 0) else (1, 0))
            entry = next((e for e in (entry, other) if np.array_equal(e.to_jax(ours), theirs)), entry)
            decided = decided and np.array_equal(entry.to_jax(ours), theirs)
        entries.append(entry)
    notes = tuple(note for note in ledger.notes if not (decided and ASSUMED in note))
    return dataclasses.replace(ledger, entries=tuple(entries), notes=notes)


def _with_added(ledger: Ledger, torch_model: torch.nn.Module, jax_model: nnx.Module) -> Tensors:
    """Where JAX holds the rounded sum of two biases of PyTorch, compare with that sum in the first and zeros in the
    second: rounding the sum is no mistake of the port.
    """
    if not any(entry.added for entry in ledger):
        return Tensors(torch_model, ledger)
    variables, first = jax_variables(jax_model), {entry.jax: entry for entry in ledger if not entry.added}
    model, names = copy.deepcopy(torch_model), dict[str, None]()
    state = model.state_dict(keep_vars=True)
    for entry in (entry for entry in ledger if entry.added):
        owner, held = first[entry.jax], np.asarray(variables[entry.jax][...])
        sum_of, rest = (state[e.torch].detach()[slices(e.torch_box)] for e in (owner, entry))
        total = to_numpy(sum_of).astype(np.float64) + to_numpy(rest)
        if to_numpy(rest).any() and _close(owner.to_torch(held).reshape(total.shape), total):
            sum_of.copy_(to_tensor(owner.to_torch(held)).reshape(sum_of.shape))
            rest.zero_()
            names[f"{owner.torch} + {entry.torch}"] = None
    if not names:
        return Tensors(torch_model, ledger)
    note = f"{', '.join(names)}: one tensor in JAX, compared with the sum in the first, and zeros in the second"
    texts = tuple(text for text in ledger.notes if " has to be zero in PyTorch: " not in text)
    return Tensors(model, dataclasses.replace(ledger, notes=texts), (), (note,))


def _by_value(
    torch_model: torch.nn.Module, jax_model: nnx.Module, rules: Rules, error: UnpairedTensorsError
) -> Tensors | None:
    """Pair the tensors by their values; None if that does not help."""
    try:
        ledger = ledger_by_value(torch_model, jax_model, partial=True)
    except (ValueError, TypeError):  # a tensor without values
        return None
    state, variables = state_of(torch_model), jax_variables(jax_model)
    found = {entry.torch for entry in ledger}, {entry.jax for entry in ledger}
    weights = _weights(torch_model)
    lost = [name for name in ledger.torch_only if name in weights and not matches(name, rules.torch_only)]
    arrays = {name: np.asarray(variables[name][...]) for name in ledger.jax_only}
    sums = _sums({name: to_numpy(state[name]) for name in lost}, arrays)
    summed = {name for pair in sums for name in pair}
    lost = [name for name in lost if name not in summed]
    sides = (
        ({name: to_numpy(state[name]) for name in (*found[0], *lost, *summed)}, found[0] | summed),
        ({name: np.asarray(x[...]) for name, x in variables.items()}, found[1] | set(sums.values())),
    )
    if not found[0] & set(error.alone) or not all(_mostly(arrays, names) for arrays, names in sides):
        return None
    problems = "; ".join(error.problems[:LISTED]) + ("; ..." if len(error.problems) > LISTED else "")
    notes = [f"tensors are paired by their values, since their names do not correspond ({problems})"]
    told = (*rules.jax_only, *map(glob.escape, sums.values()))
    jax_only = [name for name in ledger.jax_only if not matches(name, told)]
    if jax_only:
        notes.append(f"without a partner in PyTorch, so their gradients are not compared: {_listed(jax_only)} of JAX")
    buffers = [name for name in ledger.torch_only if name not in weights and not matches(name, TORCH_ONLY)]
    if buffers:
        notes.append(f"without a partner in JAX, which computes or lacks them: {_listed(buffers)} of PyTorch")
    why = "no tensor of JAX has its values, so its gradient is not compared either: converted wrongly, or folded"
    if jax_only:
        why += f" into one of {_listed(jax_only)}"
    notes += [
        f"{' + '.join(pair)} of PyTorch is one tensor in JAX, {name}: compared with the sum in the first, and zeros in "
        "the second"
        for pair, name in sums.items()
    ]
    rows = [Row(name, "weights", "-", "as stored", math.inf, 0.0, note=why) for name in lost]
    texts = [note for note in ledger.notes if " has the values of no tensor of " not in note]
    if sums:
        torch_model = copy.deepcopy(torch_model)
        ledger = _with_sums(ledger, torch_model, variables, sums)
    return Tensors(torch_model, dataclasses.replace(ledger, notes=tuple(texts)), tuple(rows), tuple(notes))


def _with_sums(
    ledger: Ledger,
    model: torch.nn.Module,
    variables: Mapping[str, nnx.Variable],
    sums: Mapping[tuple[str, str], str],
) -> Ledger:
    """Move each sum into the first of its two biases of `model`, and return the ledger with both of them."""
    state, entries = model.state_dict(keep_vars=True), list(ledger.entries)
    for pair, held in sums.items():
        total, shape = np.asarray(variables[held][...]), tuple(variables[held].shape)
        for name, added in zip(pair, (False, True), strict=True):
            bias = state[name]
            with torch.no_grad():
                bias.zero_() if added else bias.copy_(to_tensor(total).reshape(bias.shape))
            rule = LeafRule(name, held, reshape=True, added=added)
            entries.append(Entry.of(rule, "", tuple(bias.shape), shape, dtype_name(bias)))
    gone = {name for pair in sums for name in pair}
    return dataclasses.replace(
        ledger,
        entries=tuple(entries),
        torch_only=tuple(name for name in ledger.torch_only if name not in gone),
        jax_only=tuple(name for name in ledger.jax_only if name not in sums.values()),
    )


def _weights(model: torch.nn.Module) -> set[str]:
    """Return the names of all parameters and running statistics: a buffer of another kind may be computed in JAX."""
    found = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, torch.nn.modules.batchnorm._NormBase):
            found |= {f"{path}.{name}".strip(".") for name in ("running_mean", "running_var")}
    return found


def _sums(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[tuple[str, str], str]:
    """Return which two biases of a recurrent layer of PyTorch are one in JAX, which holds their sum."""
    found: dict[tuple[str, str], str] = {}
    for name, one in ours.items():
        other = name.replace("bias_ih", "bias_hh")
        if other == name or other not in ours or ours[other].shape != one.shape:
            continue
        total = one.astype(np.float64) + ours[other]
        free = (other_name for other_name in theirs if other_name not in found.values())
        equal = (name for name in free if theirs[name].size == total.size and _close(theirs[name].ravel(), total))
        if (held := next(equal, None)) is not None:
            found[name, other] = held
    return found


def _close(sums: np.ndarray, total: np.ndarray) -> bool:
    """Return whether `total` was rounded to `sums`."""
    return sums.dtype.kind == "f" and np.allclose(sums, total, rtol=0, atol=1e-6 * float(np.abs(total).max()))


def _mostly(arrays: dict[str, np.ndarray], found: set[str]) -> bool:
    """Return whether at least half of the tensors are in `found`, of those that are not zeros or ones throughout."""
    telling = [name for name, array in arrays.items() if array.size and (array != array.flat[0]).any()]
    return 2 * len(found.intersection(telling)) >= max(len(telling), 1)


def _listed(names: list[str]) -> str:
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")
