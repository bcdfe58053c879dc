"""The proof: two models, every layer, float64 first; then float32 judged by float64; gradients; training mode."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from flax import nnx

from parity.carry.model_types import jax_subject, torch_subject
from parity.carry.rules import Rules
from parity.judgement.rows import (
    pairing_rows,
    weight_notes,
    weight_rows,
)
from parity.judgement.small_elements import is_small
from parity.measure.gates import Gates
from parity.power import power_of
from parity.proof.reduced_formats import format_rows
from parity.proof.stages import MEMORY, Proof, fails
from parity.report.findings import Cause
from parity.report.report import Report
from parity.runs.losses import Loss

LEVELS = ("forward", "gradients", "train")


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
    power: bool | float = False,
    same_trainable: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Proves, or refutes, that both models are the same: weights, every layer, output, loss, every gradient.

    Copies of the models run in evaluation mode; the models themselves stay as they are.

    Args:
        torch_model, jax_model: the pair, with the same weights (see `torch_to_jax`).
        inputs: one array, a tuple of arguments, a mapping of arguments by name, or `Inputs`, as PyTorch's model takes
            them. Images are N C H W there and N H W C in JAX; an array of rank 3 to 5 that is no image is handed over
            as it is if JAX's model takes it so.
        rules: what the pair needs besides the built-in rules.
        level: "forward"; "gradients" for the loss and all gradients too; "train" for training mode on top, with the
            same random draws in both.
        gates: the largest errors that pass; the defaults are derived in the docs.
        loss: what is differentiated; by default one that has a gradient and a curvature in every direction of every
            output (`parity.runs.losses.default_loss`).
        formats: report bfloat16 and the device's default matrix products too.
        memory: GiB that models and activations may take. Where they do not fit, the forward pass runs again for each
            part of the layers: more memory makes the check of a large model quicker.
        power: measure too what these inputs and weights would have shown (see `parity.power`): True, or what it may
            cost in forward passes of the model.
        same_trainable: also require that the same tensors are trained on both sides. By default a part that is frozen
            on one side alone is said, since flax models are usually frozen in the optimiser.
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
    torch_model, jax_model = torch_subject(torch_model), jax_subject(jax_model)
    proof = Proof.of(torch_model, jax_model, inputs, rules or Rules(), gates or Gates(), memory)
    rows = weight_rows(proof.ledger, torch_model, jax_model, same_trainable=same_trainable)
    proof.notes.extend([*proof.ledger.notes, *weight_notes(proof.ledger, torch_model, jax_model)])
    rows += pairing_rows(proof.pairing)
    forward = proof.forward(tell=tell)
    if fails(forward, mode="forced") and (other := proof.in_other_order()) is not None:
        tell("calls of one module in another order")
        again = other.forward(tell=tell)
        if sum(not row.passed for row in again) < sum(not row.passed for row in forward):
            proof, forward = other, again
    rows += forward
    causes: tuple[Cause, ...] = ()
    if fails(rows, mode="forced"):
        tell("causes")
        causes = proof.causes([row for row in rows if not is_small(row)])  # by relF, which sees nothing there
    if not proof.pairing.comparable and level != "forward":
        proof.notes.append("gradients and training mode were not compared, since the outputs cannot be")
        level, formats = "forward", False
    evaluation_loss = loss or proof.default_loss
    if level != "forward" and evaluation_loss is not None:
        tell("gradients")
        gradients = proof.gradients(evaluation_loss)
        rows += gradients
        # A wrong gradient does not say where it comes from; where the forward pass is right, this does.
        unsure = fails(gradients, precision="float64") or bool(proof.tables.apart)
        if unsure and not fails(rows, mode="forced"):
            tell("derivative of every module")
            derivatives, found = proof.derivatives()
            rows, causes = rows + derivatives, causes + found
    if level == "train":
        tell("training mode")
        found_rows, found = proof.training(loss)
        rows, causes = rows + found_rows, causes + found
    if formats:
        tell("reduced formats")
    format_figures = (
        format_rows(torch_model, proof.jax_side("float32"), proof.arrays, proof.pairing.root) if formats else ()
    )
    powers = power_of(proof, level, evaluation_loss, power, tell) if power else None
    return Report(
        rows=tuple(rows),
        ledger=proof.ledger,
        layers=tuple((pair.name, type(pair.module).__name__) for pair in proof.pairing.pairs),
        unpaired=proof.pairing.unpaired,
        causes=causes,
        formats=tuple(format_figures),
        notes=proof.all_notes,
        power=powers,
        settings={
            "level": level,
            "torch_model": type(torch_model).__name__,
            "jax_model": type(jax_model).__name__,
            "input_shapes": [list(x.shape) for x in proof.arrays],
            "loss": None if level == "forward" or evaluation_loss is None else evaluation_loss.name,
            "seconds": round(time.perf_counter() - start, 1),
        },
    )


def assert_parity(torch_model: torch.nn.Module, jax_model: nnx.Module, inputs: Any, **options: Any) -> Report:
    """`check`, for tests: raises AssertionError with the report unless every gate holds; returns the report."""
    report = check(torch_model, jax_model, inputs, **options)
    if not report.passed:
        raise AssertionError(f"the models differ\n{report}")
    return report
