"""Turn measurements into rows, each with its error, its gate and its reference."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx

from parity.carry.arrays import is_integer, numpy_dtype
from parity.carry.convert import Ledger, jax_variables, state_equal, to_numpy
from parity.carry.ledger import identity
from parity.judgement.loss_gate import loss_error, loss_rows
from parity.judgement.named_outputs import with_outputs
from parity.judgement.small_elements import Small, SmallOnes, with_error
from parity.measure.gates import BY_CHANCE, HUGE, Gates, Reference, Row, norm, real_numbers, rel_f, relative
from parity.measure.layer_rounding import own_terms, summed
from parity.pairing.match_calls import Pair, Pairing
from parity.recording.capture import Call, Key
from parity.runs.torch_side import Arrays, Gradients

REARRANGEMENTS = (
    torch.nn.Unfold,
    torch.nn.Flatten,
    torch.nn.Unflatten,
    torch.nn.Identity,
    torch.nn.Dropout,
    torch.nn.PixelShuffle,
    torch.nn.PixelUnshuffle,
)
"""Modules without arithmetic (in evaluation mode), which must agree bit for bit."""

ZERO_BY_STRUCTURE = 1e-10
"""Ratio to the global norm below which a gradient is rounding noise around zero (float64 noise is about 1e-16)."""

FLUSHED = 2.0**-124
"""Four times the smallest normal float32, 2^-126: allowed error per element where subnormal numbers flush to zero."""

FLOAT64_NOISE = 2.0**-29
"""Ratio of float64 rounding to float32 rounding; noise scales with it."""


def weight_rows(
    ledger: Ledger, torch_model: torch.nn.Module, jax_model: nnx.Module, *, same_trainable: bool = True
) -> list[Row]:
    """Return one row for all tensors that are equal bit for bit, and one row for each different tensor.

    With `same_trainable`, a tensor that is trained on one side and frozen on the other counts as different.
    """
    state, variables = torch_model.state_dict(keep_vars=True), jax_variables(jax_model)
    different = set(state_equal(ledger, torch_model, jax_model))
    rows = []
    for entry in ledger:
        value, variable = state[entry.torch], variables[entry.jax]
        notes = []
        whole = is_integer(variable.dtype) and is_integer(numpy_dtype(value))
        if same_trainable and value.requires_grad != isinstance(variable, nnx.Param):
            notes.append("trained on one side, frozen on the other")
        if str(variable.dtype) != entry.dtype and not whole:
            notes.append(f"{entry.dtype} in PyTorch, {variable.dtype} in JAX")
        if notes or entry.torch in different:
            theirs = np.asarray(jax.device_get(variable[...]))
            given, wanted = entry.in_jax(theirs), entry.to_jax(to_numpy(value))
            error = rel_f(given, wanted) if wanted.size else 0.0
            rows.append(Row(entry.torch, "weights", "-", entry.dtype, error, 0.0, note="; ".join(notes)))
    equal = len(ledger) - len(rows)
    return [Row(f"{equal} tensors", "weights", "-", "as stored", 0.0, 0.0), *rows] if equal else rows


def pairing_rows(pairing: Pairing) -> list[Row]:
    """Return rows for failures that precede any numerical comparison: structures, dtypes, modules that never ran."""
    rows = [Row(name, "structure", "-", "-", math.inf, 0.0, note=why) for name, why in pairing.different]
    for path in pairing.idle:
        why = (
            f"nothing was compared: its weights are not used on these inputs (leave it out: Rules(unpaired=[{path!r}]))"
        )
        rows.append(Row(path, "not run", "-", "-", math.inf, 0.0, note=why))
    if pairing.configured:
        name, how = pairing.configured[-1]
        others = len(pairing.configured) - 1
        more = f", and in {others} more {'module' if others == 1 else 'modules'}" if others else ""
        why = f"results are {how}{more}"
        rows.append(Row(name, "configuration", "-", "as configured", math.inf, 0.0, note=why))
    return rows


def weight_notes(ledger: Ledger, torch_model: torch.nn.Module, jax_model: nnx.Module) -> list[str]:
    """Return notes on tensors that are not failures: frozen on one side, integer widths, empty or tied tensors."""
    state, variables = torch_model.state_dict(keep_vars=True), jax_variables(jax_model)
    notes, first = [], dict[Any, str]()
    frozen: dict[str, list[str]] = {}
    for entry in ledger:
        value, variable = state[entry.torch], variables[entry.jax]
        if value.requires_grad != isinstance(variable, nnx.Param):
            frozen.setdefault("JAX" if value.requires_grad else "PyTorch", []).append(entry.torch)
        if is_integer(variable.dtype) and str(variable.dtype) != entry.dtype:
            notes.append(
                f"{entry.torch} is {entry.dtype} in PyTorch and {variable.dtype} in JAX, compared by its numbers"
            )
        if not value.numel():
            notes.append(f"{entry.torch} is empty: there is nothing to compare")
        other = first.setdefault(identity(value), entry.torch) if not entry.torch_box else entry.torch
        if other != entry.torch and value.requires_grad:
            notes.append(
                f"{entry.torch} is {other} in PyTorch (tied), and two tensors in JAX: they will diverge in training"
            )
    for side, names in frozen.items():
        listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        notes.append(f"frozen in {side} alone: {listed} (no failure unless same_trainable=True)")
    return notes


def distance(value: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> tuple[float, str]:
    """Return the largest relF over the tensors of a call, and the reason if they cannot be compared."""
    worst, note = 0.0, ""
    for a, b in zip(value, reference, strict=True):
        if a.shape != b.shape:
            return math.inf, f"shapes differ: {list(b.shape)} in PyTorch, {list(a.shape)} in JAX"
        if b.size == 0:
            return math.inf, "nothing to compare: the tensor is empty"
        if np.iscomplexobj(a) != np.iscomplexobj(b):
            kinds = ["complex" if np.iscomplexobj(x) else "real" for x in (b, a)]
            return math.inf, f"{kinds[0]} numbers in PyTorch, {kinds[1]} ones in JAX"
        error = rel_f(a, b)
        if math.isinf(error) and not (np.isfinite(a).any() or np.isfinite(b).any()):
            note = "nothing to compare: no number is finite on either side"
        elif math.isinf(error) and not np.array_equal(np.isfinite(a), np.isfinite(b)):
            note = "not finite on one side only"
        worst = max(worst, error)
    return worst, note


def _kind(pair: Pair) -> str:
    return "layer" if pair.torch[0] else "output"


def layer_rows(
    pairs: Sequence[Pair],
    references: Arrays,
    calls: Arrays,
    mode: str,
    gates: Gates,
    noise: Mapping[Key, float] | None = None,
    small: SmallOnes | None = None,
) -> list[Row]:
    """Compare JAX's calls with PyTorch's in float64; in forced mode also the inputs each module receives.

    Mode "train" is forced mode in training.

    `noise` is the float32 noise floor per JAX call (see `noise_floor`). `small` are the elements that relF does not
    resolve (see `parity.judgement.small_elements`); if relF passes and they fail, the row reports their error.
    """
    rows = []
    for pair in pairs:
        reference, call = references[pair.jax], calls[pair.jax]
        gate = 0.0 if isinstance(pair.module, REARRANGEMENTS) and mode == "forced" else gates.f64
        floor = noise[pair.jax] * FLOAT64_NOISE if noise else None
        hidden = small[pair.jax] if small else Call([], [])
        row = _row(pair, _kind(pair), mode, call.outputs, reference.outputs, gate, floor)
        row = with_outputs(row, pair, call.outputs, reference.outputs)
        rows.append(_with_small(row, hidden.outputs, call.outputs))
        if mode in ("forced", "train") and pair.torch[0] and reference.inputs is not None:
            row = _row(pair, "calls", mode, call.inputs or [], reference.inputs, gates.f64)
            rows.append(_with_small(row, hidden.inputs or [], call.inputs or []))
    return rows


def _with_small(row: Row, small: Sequence[Small | None], value: Sequence[np.ndarray]) -> Row:
    """Return the row, or if it passes and the elements that it does not resolve fail, a row with their error."""
    found = [own.error(x) for own, x in zip(small, value, strict=False) if own is not None] if row.passed else []
    return with_error(row, *max(found, default=(0.0, "")))


def _row(
    pair: Pair,
    kind: str,
    mode: str,
    value: Sequence[np.ndarray],
    reference: Sequence[np.ndarray],
    gate: float,
    noise: float | None = None,
) -> Row:
    error, note = distance(value, reference)
    leaks = sorted({str(x.dtype) for x in value if np.issubdtype(x.dtype, np.inexact)} - {"float64", "complex128"})
    if leaks:
        note = f"{', '.join(leaks)} in a float64 run"
    moving = [x for pair in zip(value, reference, strict=True) for x in pair if np.issubdtype(x.dtype, np.inexact)]
    if kind == "output" and moving and not any(x.any() for x in moving):
        note = "nothing to compare: zero everywhere on both sides"
    return Row(pair.name, kind, mode, "float64", error, gate, note=note, noise=noise)


def noise_floor(pairs: Sequence[Pair], oracle: Arrays, perturbed_run: Arrays) -> dict[Key, float]:
    """Return relF per JAX call between the oracle and a run on inputs perturbed by one float32 rounding."""
    return {pair.jax: distance(perturbed_run[pair.torch].outputs, oracle[pair.torch].outputs)[0] for pair in pairs}


def float32_rows(
    pairs: Sequence[Pair],
    oracle: Arrays,
    torch_calls: Arrays,
    jax_calls: Arrays,
    mode: str,
    gates: Gates,
    noise: Mapping[Key, float] | None = None,
    *,
    reference: Reference = "torch",
) -> list[Row]:
    """Compare both frameworks in float32 with the float64 oracle and, in free mode, with each other.

    The gate of the port's error depends on the reference's error.
    """
    rows = []
    terms = last = 0
    narrowest = sys.maxsize
    for pair in pairs:
        wanted, ours, theirs = (calls[pair.jax] for calls in (oracle, torch_calls, jax_calls))
        own = _own_terms(pair, wanted)
        if mode == "forced":
            terms = own
        elif own:  # in free mode, a layer also carries the rounding of the preceding sum
            terms, last = max(own, last), own
        base, port = (ours, theirs) if reference == "torch" else (theirs, ours)
        base_error, _ = distance(base.outputs, wanted.outputs)
        error, note = distance(port.outputs, wanted.outputs)
        limit = gates.f32_between if pair.torch[0] else gates.f32_logits
        floor = noise[pair.jax] if noise else None
        allowed = max(limit, BY_CHANCE * max(x for x in (0.0, floor, base_error) if x is not None and math.isfinite(x)))
        size = min(_independent(wanted, mode), equally_large(base.outputs, wanted.outputs))
        if mode == "free":  # an error of few numbers (squeeze-and-excitation gates) spreads to many
            size = narrowest = min(size, narrowest)
        gate = gates.float32(base_error, size, allowed, terms=terms)
        gate = max(gate, flushed(wanted.outputs))
        growth = None
        if mode == "free" and wanted.inputs:
            before, _ = distance(port.inputs or [], wanted.inputs)
            growth = error / before if before > 0 and math.isfinite(before) else None
        rows.append(Row(pair.name, _kind(pair), mode, "float32", error, gate, base_error, note, floor, growth))
        if mode == "free":
            between, note = distance(theirs.outputs, ours.outputs)
            limit = limit if gate <= limit else gate + base_error  # errors of both frameworks add up
            rows.append(Row(pair.name, _kind(pair), "between", "float32", between, limit, note=note))
    return rows


def _by_chance(*noise: float | None) -> float:
    return BY_CHANCE * max(x for x in (0.0, *noise) if x is not None and math.isfinite(x))


def flushed(outputs: Sequence[np.ndarray]) -> float:
    """Return relF of a tensor with the error FLUSHED in every element: XLA on CPU flushes subnormal numbers to zero."""
    sizes = [(norm(x), x.size) for x in outputs if x.size]
    lost = max((relative(FLUSHED * math.sqrt(n), size) for size, n in sizes if 0 < size < HUGE), default=0.0)
    return lost if lost > 2.0**-24 else 0.0


def _own_terms(pair: Pair, call: Call) -> int:
    """Call `own_terms` with the input in PyTorch's layout (`call` is in JAX's; the output's size is the same)."""
    if not call.inputs or not call.outputs:
        return summed(pair.module)
    axes = pair.input_axes[0] if pair.input_axes else None
    x = call.inputs[0] if axes is None else call.inputs[0].transpose(np.argsort(axes))
    return own_terms(pair.module, x, call.outputs[0])


def _independent(call: Call, mode: str) -> int:
    """Return the number of independent rounding errors of a call: one per output element, or in free mode at most one
    per input element, since the input's errors propagate."""
    size = sum(x.size for x in call.outputs)
    return min(size, sum(x.size for x in call.inputs or ()) or size) if mode == "free" else size


def equally_large(value: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> int:
    """Return the effective number of equally large errors, 3 (sum e^2)^2 / sum e^4, which is n for n normal errors.

    A few of many elements may carry nearly all of the error; such an error is small by chance as often as that of a
    tensor with only few elements.
    """
    with np.errstate(invalid="ignore"):  # infinities on both sides
        errors = [np.subtract(*real_numbers(a, b)).ravel() for a, b in zip(value, reference, strict=True)]
    e = np.concatenate([*errors, np.zeros(0)])
    largest = np.abs(e).max(initial=0.0)
    if not 0 < largest < math.inf:
        return max(1, e.size)
    squares = (e / largest) ** 2
    return max(1, min(e.size, round(3 * squares.sum() ** 2 / (squares**2).sum())))


def gradient_rows(
    wanted: Gradients, given: Gradients, gates: Gates, *, names: Mapping[Key, str] | None = None, mode: str = "free"
) -> list[Row]:
    """Compare loss and gradients in float64: parameters, inputs, and the activations in `names` (keys: JAX's calls).

    The loss fails if every parameter's gradient is zero, since nothing was compared.
    """
    zero = wanted.params and not any(g.any() for side in (wanted, given) for g in side.params.values())
    note = "every gradient is zero: nothing was compared" if zero else ""
    rows = [Row("loss", "loss", mode, "float64", loss_error(given, wanted), gates.f64, note=note)]
    errors = _gradient_errors(given, wanted, names)
    return rows + [Row(name, kind, mode, "float64", e, gates.f64_gradient) for (name, kind), e in errors.items()]


def float32_gradient_rows(
    oracle: Gradients,
    base: Gradients,
    port: Gradients,
    gates: Gates,
    *,
    names: Mapping[Key, str] | None = None,
    mode: str = "free",
    perturbed_run: Gradients | None = None,
    shifted: Gradients | None = None,
) -> list[Row]:
    """Compare loss and gradients of both frameworks in float32 with the float64 oracle.

    `base` is the reference, whose errors determine the gates of the port's. `perturbed_run` is a float64 run of PyTorch
    with inputs and parameters perturbed by one float32 rounding each; it shows where large terms cancel. `shifted` is a
    run whose loss receives the port's float32 outputs: since outputs have gates of their own, the gradient error that
    they cause is added to the gradient's gate.
    """
    rows = loss_rows(oracle, base, port, gates, mode, perturbed_run)
    base_errors, port_errors = _gradient_errors(base, oracle, names), _gradient_errors(port, oracle, names)
    noise, handed_on = (_gradient_errors(run, oracle, None) if run else {} for run in (perturbed_run, shifted))
    sizes = _gradient_sizes(oracle, base, names)
    for (name, kind), error in port_errors.items():
        own = base_errors[name, kind]
        known = noise.get((name, kind), 0.0)
        limit = max(gates.f32_between, _by_chance(known, own))
        gate = gates.float32(own, sizes[name, kind], limit, floor=gates.f32_gradient_floor)
        extra = handed_on.get((name, kind), 0.0)
        gate += extra if math.isfinite(extra) else 0.0
        rows.append(Row(name, kind, mode, "float32", error, gate, own))
    return rows


def _gradient_errors(
    value: Gradients, reference: Gradients, names: Mapping[Key, str] | None
) -> dict[tuple[str, str], float]:
    """Return relF of every gradient; gradients that are structurally zero are relative to the global gradient norm."""
    global_norm = math.sqrt(sum(norm(g) ** 2 for g in reference.params.values()))
    errors = {
        (name, "gradient"): _gradient_error(value.params[name], g, global_norm)
        for name, g in reference.params.items()
        if g.size
    }
    for i, (a, b) in enumerate(zip(value.inputs, reference.inputs, strict=True)):
        errors[f"input {i}", "gradient"] = _gradient_error(a, b, global_norm)
    largest = max((norm(g) for key in names or () for g in reference.activations[key]), default=0.0)
    for key, name in (names or {}).items():
        pairs = zip(value.activations[key], reference.activations[key], strict=True)
        errors[name, "activation gradient"] = max(_gradient_error(a, b, largest) for a, b in pairs)
    return errors


def _gradient_sizes(oracle: Gradients, base: Gradients, names: Mapping[Key, str] | None) -> dict[tuple[str, str], int]:
    """Return the effective number of errors in each gradient of the reference: see `equally_large`."""
    sizes = {(name, "gradient"): equally_large([base.params[name]], [g]) for name, g in oracle.params.items()}
    pairs = enumerate(zip(base.inputs, oracle.inputs, strict=True))
    sizes |= {(f"input {i}", "gradient"): equally_large([a], [b]) for i, (a, b) in pairs}
    return sizes | {
        (name, "activation gradient"): min(
            equally_large([a], [b]) for a, b in zip(base.activations[key], oracle.activations[key], strict=True)
        )
        for key, name in (names or {}).items()
    }


def _gradient_error(value: np.ndarray, reference: np.ndarray, global_norm: float) -> float:
    if norm(reference) > ZERO_BY_STRUCTURE * global_norm:
        return rel_f(value, reference)
    return relative(norm(np.subtract(*real_numbers(value, reference))), global_norm)
