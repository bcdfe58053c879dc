"""The proof: two models, every layer, float64 first; then float32 judged by float64; then gradients."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx

from parity.align import input_axes
from parity.compare import Gates, Row, norm, rel_f, relative
from parity.convert import Ledger, build_ledger, jax_variables, state_equal, to_numpy
from parity.losses import Loss, default_loss
from parity.pairing import Pair, pair_calls
from parity.report import Report
from parity.rules import Rules
from parity.runs import Arrays, Gradients, Models

LEVELS = ("forward", "gradients")

REARRANGEMENTS = (
    torch.nn.Unfold,
    torch.nn.Flatten,
    torch.nn.Unflatten,
    torch.nn.Identity,
    torch.nn.Dropout,
    torch.nn.PixelShuffle,
    torch.nn.PixelUnshuffle,
)
"""Modules that compute nothing (in evaluation mode): equal means bit for bit."""


def check(
    torch_model: torch.nn.Module,
    jax_model: nnx.Module,
    inputs: Any,
    *,
    rules: Rules | None = None,
    level: str = "gradients",
    gates: Gates | None = None,
    loss: Loss | None = None,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Proves, or refutes, that both models are the same: weights, every layer, output, loss, every gradient.

    Copies of the models run in evaluation mode; the models themselves stay as they are.

    Args:
        torch_model, jax_model: the pair, with the same weights (see `torch_to_jax`).
        inputs: one array, or a tuple of them, as PyTorch's model takes them (images N C H W; JAX's get N H W C).
        rules: what the pair needs besides the built-in rules.
        level: "forward", or "gradients" for the loss and all gradients too.
        gates: the largest errors that pass; the defaults are derived in the docs.
        loss: what is differentiated; by default cross entropy for logits (B, K), else a random projection.
        progress: called with a line before each stage.

    Returns:
        A report; `report.passed` says whether every gate holds.

    Raises:
        ValueError: the models cannot be compared: tensors or modules without a partner (all are listed).
    """
    if level not in LEVELS:
        raise ValueError(f"level {level!r} is not one of {', '.join(LEVELS)}")
    rules, gates, tell = rules or Rules(), gates or Gates(), progress or (lambda stage: None)
    start = time.perf_counter()
    arrays = _inputs(inputs)
    axes = tuple(input_axes(x.ndim) for x in arrays)

    tell("weights")
    ledger = build_ledger(torch_model, jax_model, rules)
    rows = weight_rows(ledger, torch_model, jax_model)

    tell("float64, free running")
    double = Models.of(torch_model, jax_model, "float64", axes)
    oracle = double.torch_forward(arrays)
    free = double.jax_forward(arrays)
    pairs, unpaired = pair_calls(double.torch, double.jax, oracle, free, rules)
    references = {pair.jax: pair.reference(oracle[pair.torch]) for pair in pairs}
    rows += layer_rows(pairs, references, free, "free", gates)

    tell("float64, every layer on the reference's inputs")
    rows += layer_rows(pairs, references, double.jax_forward(arrays, references), "forced", gates)

    tell("float32, free running")
    single = Models.of(torch_model, jax_model, "float32", axes)
    torch_free = _aligned(pairs, single.torch_forward(arrays))
    rows += float32_rows(pairs, references, torch_free, single.jax_forward(arrays), "free", gates)

    tell("float32, every layer on the reference's inputs")
    torch_reference = {pair.torch: oracle[pair.torch] for pair in pairs}
    torch_forced = _aligned(pairs, single.torch_forward(arrays, torch_reference))
    rows += float32_rows(pairs, references, torch_forced, single.jax_forward(arrays, references), "forced", gates)

    if level == "gradients":
        loss = loss or default_loss(oracle["", 0].outputs[0].shape)
        tell("float64 gradients")
        wanted, given = double.torch_gradients(arrays, loss), double.jax_gradients(arrays, loss, ledger)
        rows += gradient_rows(wanted, given, gates)
        tell("float32 gradients")
        torch_single = single.torch_gradients(arrays, loss)
        rows += float32_gradient_rows(wanted, torch_single, single.jax_gradients(arrays, loss, ledger), gates)

    return Report(
        rows=tuple(rows),
        ledger=ledger,
        layers=tuple((pair.name, type(pair.module).__name__) for pair in pairs),
        unpaired=tuple(unpaired),
        settings={
            "level": level,
            "torch_model": type(torch_model).__name__,
            "jax_model": type(jax_model).__name__,
            "input_shapes": [list(x.shape) for x in arrays],
            "loss": loss.name if loss and level == "gradients" else None,
            "seconds": round(time.perf_counter() - start, 1),
        },
    )


def assert_parity(torch_model: torch.nn.Module, jax_model: nnx.Module, inputs: Any, **options: Any) -> Report:
    """`check`, for tests: raises AssertionError with the report unless every gate holds; returns the report."""
    report = check(torch_model, jax_model, inputs, **options)
    if not report.passed:
        raise AssertionError(f"the models differ\n{report}")
    return report


def _inputs(inputs: Any) -> tuple[np.ndarray, ...]:
    """The inputs as numpy, floating ones in float64.

    Raises:
        ValueError: no input, an empty one, or one that is not finite.
    """
    arrays = [to_numpy(x) for x in (inputs if isinstance(inputs, tuple | list) else (inputs,))]
    if not arrays or any(x.size == 0 for x in arrays):
        raise ValueError("there is nothing to run on: the inputs are empty")
    if not all(np.isfinite(x.astype(np.float64)).all() for x in arrays):
        raise ValueError("the inputs hold NaN or infinity")
    # Rounded to float32 once, so that both precisions see the same numbers.
    return tuple(x.astype(np.float32).astype(np.float64) if np.issubdtype(x.dtype, np.floating) else x for x in arrays)


def weight_rows(ledger: Ledger, torch_model: torch.nn.Module, jax_model: nnx.Module) -> list[Row]:
    """One row for all tensors that are equal bit for bit and trained (or frozen) on both sides, one for each other."""
    state, variables = torch_model.state_dict(keep_vars=True), jax_variables(jax_model)
    different = set(state_equal(ledger, torch_model, jax_model))
    rows = []
    for entry in ledger:
        value, variable = state[entry.torch], variables[entry.jax]
        notes = []
        if value.requires_grad != isinstance(variable, nnx.Param):
            notes.append("trained on one side, frozen on the other")
        if str(variable.dtype) != entry.dtype:
            notes.append(f"{entry.dtype} in PyTorch, {variable.dtype} in JAX")
        if notes or entry.torch in different:
            error = rel_f(np.asarray(jax.device_get(variable[...])), entry.rule.to_jax(to_numpy(value)))
            rows.append(Row(entry.torch, "weights", "-", entry.dtype, error, 0.0, note="; ".join(notes)))
    equal = len(ledger) - len(rows)
    return [Row(f"{equal} tensors", "weights", "-", "as stored", 0.0, 0.0), *rows] if equal else rows


def _aligned(pairs: Sequence[Pair], calls: Arrays) -> Arrays:
    """PyTorch's calls under JAX's names and in JAX's layout."""
    return {pair.jax: pair.reference(calls[pair.torch]) for pair in pairs}


def _distance(value: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> tuple[float, str]:
    """The largest relF over the tensors of a call, and what is wrong if they cannot be compared."""
    worst, note = 0.0, ""
    for a, b in zip(value, reference, strict=True):
        if a.shape != b.shape:
            return float("inf"), f"shapes differ: {list(b.shape)} in PyTorch, {list(a.shape)} in JAX"
        if b.size == 0:
            return float("inf"), "nothing to compare: the tensor is empty"
        error = rel_f(a, b)
        if math.isinf(error) and np.isfinite(a).all() != np.isfinite(b).all():
            note = "not finite on one side only"
        worst = max(worst, error)
    return worst, note


def _kind(pair: Pair) -> str:
    return "layer" if pair.torch[0] else "output"


def layer_rows(pairs: Sequence[Pair], references: Arrays, calls: Arrays, mode: str, gates: Gates) -> list[Row]:
    """float64: JAX's calls against PyTorch's; in forced mode also what each module was given by the one around it."""
    rows = []
    for pair in pairs:
        reference, call = references[pair.jax], calls[pair.jax]
        gate = 0.0 if isinstance(pair.module, REARRANGEMENTS) and mode == "forced" else gates.f64
        rows.append(_row(pair, _kind(pair), mode, call.outputs, reference.outputs, gate))
        if mode == "forced" and pair.torch[0] and reference.inputs is not None:
            rows.append(_row(pair, "calls", mode, call.inputs or [], reference.inputs, gates.f64))
    return rows


def _row(
    pair: Pair, kind: str, mode: str, value: Sequence[np.ndarray], reference: Sequence[np.ndarray], gate: float
) -> Row:
    error, note = _distance(value, reference)
    leaks = sorted({str(x.dtype) for x in value if np.issubdtype(x.dtype, np.floating)} - {"float64"})
    if leaks:
        note = f"{', '.join(leaks)} in a float64 run"
    return Row(pair.name, kind, mode, "float64", error, gate, note=note)


def float32_rows(
    pairs: Sequence[Pair], oracle: Arrays, torch_calls: Arrays, jax_calls: Arrays, mode: str, gates: Gates
) -> list[Row]:
    """float32: both frameworks against the float64 oracle, and, running free, against each other."""
    rows = []
    for pair in pairs:
        wanted, ours, theirs = (calls[pair.jax].outputs for calls in (oracle, torch_calls, jax_calls))
        torch_error, _ = _distance(ours, wanted)
        error, note = _distance(theirs, wanted)
        gate = gates.f32_ratio * torch_error + gates.f32_floor
        rows.append(Row(pair.name, _kind(pair), mode, "float32", error, gate, torch_error, note))
        if mode == "free":
            limit = gates.f32_between if pair.torch[0] else gates.f32_logits
            between, note = _distance(theirs, ours)
            rows.append(Row(pair.name, _kind(pair), "between", "float32", between, limit, note=note))
    return rows


def gradient_rows(wanted: Gradients, given: Gradients, gates: Gates) -> list[Row]:
    """float64: loss, every parameter's gradient, every input's."""
    loss_error = relative(abs(given.loss - wanted.loss), abs(wanted.loss))
    rows = [Row("loss", "loss", "free", "float64", loss_error, gates.f64)]
    errors = _gradient_errors(given, wanted)
    return rows + [Row(name, "gradient", "free", "float64", e, gates.f64_gradient) for name, e in errors.items()]


def float32_gradient_rows(oracle: Gradients, ours: Gradients, theirs: Gradients, gates: Gates) -> list[Row]:
    """float32: the same figures of both frameworks against the float64 oracle."""
    torch_loss = relative(abs(ours.loss - oracle.loss), abs(oracle.loss))
    jax_loss = relative(abs(theirs.loss - oracle.loss), abs(oracle.loss))
    gate = gates.f32_ratio * torch_loss + gates.f32_floor
    between = relative(abs(theirs.loss - ours.loss), abs(ours.loss))
    rows = [
        Row("loss", "loss", "free", "float32", jax_loss, gate, torch_loss),
        Row("loss", "loss", "between", "float32", between, gates.f32_loss),
    ]
    torch_errors, jax_errors = _gradient_errors(ours, oracle), _gradient_errors(theirs, oracle)
    for name, error in jax_errors.items():
        gate = gates.f32_ratio * torch_errors[name] + gates.f32_gradient_floor
        rows.append(Row(name, "gradient", "free", "float32", error, gate, torch_errors[name]))
    return rows


def _gradient_errors(value: Gradients, reference: Gradients) -> dict[str, float]:
    """relF of every gradient; one that is zero by structure is measured against the global gradient norm."""
    global_norm = math.sqrt(sum(norm(g) ** 2 for g in reference.params.values()))
    pairs = {name: (value.params[name], g) for name, g in reference.params.items()}
    pairs |= {f"input {i}": (a, b) for i, (a, b) in enumerate(zip(value.inputs, reference.inputs, strict=True))}
    return {name: _gradient_error(a, b, global_norm) for name, (a, b) in pairs.items()}


ZERO_BY_STRUCTURE = 1e-10
"""A gradient this much smaller than the global norm is rounding noise around zero (float64 noise is about 1e-16)."""


def _gradient_error(value: np.ndarray, reference: np.ndarray, global_norm: float) -> float:
    if norm(reference) > ZERO_BY_STRUCTURE * global_norm:
        return rel_f(value, reference)
    return relative(norm(value.astype(np.float64) - reference), global_norm)
