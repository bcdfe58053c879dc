"""Check two models: every layer in float64, then float32 against float64, then gradients and training mode."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import torch
from flax import nnx

from parity.carry.arrays import first_line
from parity.carry.model_types import jax_subject, torch_subject
from parity.carry.program import Adapter, Program, title_of
from parity.carry.rules import Rules
from parity.causes.other_reference import of_pytorch
from parity.judgement.rows import (
    pairing_rows,
    weight_notes,
    weight_rows,
)
from parity.measure.gates import Gates, Reference
from parity.power import power_of
from parity.proof.layers import derivatives_needed, judged_layers
from parity.proof.reduced_formats import format_rows
from parity.proof.stages import MEMORY, Proof, fails
from parity.recording.own_calls import Call, jax_called, torch_called
from parity.report.report import Report
from parity.runs.losses import Loss
from parity.training_mode.train_mode import require_training

LEVELS = ("forward", "gradients", "train")
REFERENCES = ("torch", "jax")


def check(
    torch_model: torch.nn.Module,
    jax_model: nnx.Module | Adapter,
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
    reference: Reference = "torch",
    torch_call: Call | None = None,
    jax_call: Call | None = None,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Check whether both models are equivalent: weights, every layer or module, output, loss, every gradient.

    Copies of the models run in evaluation mode; the models themselves are not modified.

    Args:
        torch_model, jax_model: Pair of models with the same weights (see `torch_to_jax`). A model of Linen, Equinox or
            Haiku, or any function, is given by its adapter (`parity.linen` and the like). Its modules are compared by
            their values (see `parity.trace`), as are those of a `flax.nnx.Module` with other modules than PyTorch's.
        inputs: One array, a tuple of arguments, a mapping of arguments by name, or `Inputs`, in the PyTorch model's
            layout. Images are N C H W in PyTorch and N H W C in JAX; an array of rank 3 to 5 that is not an image is
            passed unchanged if the JAX model accepts it.
        rules: Rules of this pair in addition to the built-in rules.
        level: "forward"; "gradients" to add the loss and all gradients; "train" to add training mode with shared
            random draws.
        gates: Largest errors that pass; the defaults are derived in the docs.
        loss: Function to differentiate. Default: a loss with a gradient and a curvature in every direction of every
            output (`parity.runs.losses.default_loss`).
        formats: Also report bfloat16 and the device's default matrix products.
        memory: Memory limit in GiB for models and activations. If they do not fit, the forward pass is repeated for
            each part of the layers, so more memory speeds up the check of a large model.
        power: Also measure which mistakes these inputs and weights would reveal (see `parity.power`): True, or a
            budget in forward passes of the model.
        same_trainable: Also require that the same tensors are trained on both sides. By default, a part that is
            frozen on one side only is a note, since flax models are usually frozen in the optimizer.
        reference: Which model is right by definition, "torch" or "jax"; the other is the port. It decides what a
            difference is called, not what counts as one in float64: in float32 the port's error may be about as large
            as the reference's. Casts to float32 in PyTorch alone are judged in float32 only.
        torch_call, jax_call: How each model is called, if not both as `model(*inputs)`: functions
            `torch_call(model, *inputs)` and `jax_call(model, *inputs)` (inputs given by name are passed by name) that
            run the model and return what is compared. An adapter is given as a function of the same weights.
        progress: Function called with a line of text before each stage.

    Returns:
        The report; `report.passed` is true if every gate holds.

    Raises:
        ValueError: The models cannot be compared: tensors or modules have no partner (all are listed).
    """
    if level not in LEVELS:
        raise ValueError(f"level {level!r} is not one of {', '.join(LEVELS)}")
    if reference not in REFERENCES:
        raise ValueError(f"reference {reference!r} is not one of {', '.join(REFERENCES)}")
    tell = progress or (lambda stage: None)
    start = time.perf_counter()
    tell("weights and modules")
    torch_model, jax_model = torch_subject(torch_model), jax_subject(jax_model)
    if isinstance(jax_model, Program):
        jax_model.require_numbers()
        if level == "train":
            jax_model.require_training_mode()
    torch_model, jax_model = torch_called(torch_model, torch_call), jax_called(jax_model, jax_call)
    proof = Proof.of(torch_model, jax_model, inputs, rules or Rules(), gates or Gates(), memory, reference)
    if level == "train" and isinstance(jax_model, Program):
        require_training(jax_model, proof.arrays, proof.axes, proof.apply)
    rows = weight_rows(proof.ledger, proof.torch_model, jax_model, same_trainable=same_trainable)
    rows += proof.missing
    proof.notes.extend([*proof.ledger.notes, *weight_notes(proof.ledger, proof.torch_model, jax_model)])
    rows += pairing_rows(proof.pairing)
    try:
        forward = proof.forward(tell=tell)
    # For example of a model that mixes 32-bit and 64-bit numbers, in float64 only, or whose callback to Python fails.
    except (TypeError, jax.errors.JaxRuntimeError) as error:
        raise ValueError(f"the models cannot be run in both float64 and float32: {first_line(error)}") from error
    if fails(forward, mode="forced") and (other := proof.in_other_order()) is not None:
        tell("calls of one module in another order")
        again = other.forward(tell=tell)
        if sum(not row.passed for row in again) < sum(not row.passed for row in forward):
            proof, forward = other, again
    layers = judged_layers(proof, rows, forward, tell)
    rows, causes = layers.rows, layers.causes
    if not proof.pairing.comparable and level != "forward":
        proof.notes.append("gradients and training mode were not compared, since the outputs cannot be")
        level, formats = "forward", False
    evaluation_loss = loss or proof.default_loss
    if level != "forward" and evaluation_loss is not None:
        tell("gradients")
        gradients = proof.gradients(evaluation_loss)
        rows += gradients
        if derivatives_needed(proof, rows, gradients):
            tell("derivative of every module")
            derivatives, found = proof.derivatives(evaluation_loss, gradients)
            rows, causes = rows + derivatives, causes + found
    if level == "train":
        tell("training mode")
        found_rows, found = proof.training(loss)
        rows, causes = rows + found_rows, causes + found
    if formats:
        tell("reduced formats")
    format_figures = (
        format_rows(proof.torch_model, proof.jax_side("float32"), proof.arrays, proof.pairing.root, reference)
        if formats
        else ()
    )
    powers = power_of(proof, level, evaluation_loss, power, tell) if power else None
    return Report(
        rows=tuple(rows),
        ledger=proof.ledger,
        layers=layers.names(proof),
        unpaired=layers.unpaired(proof),
        causes=causes if reference == "torch" else tuple(map(of_pytorch, causes)),
        formats=tuple(format_figures),
        notes=proof.all_notes,
        power=powers,
        settings={
            "level": level,
            "reference": reference,
            "torch_model": type(torch_model).__name__,
            "jax_model": title_of(jax_model),
            "input_shapes": [list(x.shape) for x in proof.arrays],
            "loss": None if level == "forward" or evaluation_loss is None else evaluation_loss.name,
            "seconds": round(time.perf_counter() - start, 1),
        },
    )


def assert_parity(torch_model: torch.nn.Module, jax_model: nnx.Module | Adapter, inputs: Any, **options: Any) -> Report:
    """Run `check` and return its report; raise `AssertionError` with the report unless every gate holds."""
    report = check(torch_model, jax_model, inputs, **options)
    if not report.passed:
        raise AssertionError(f"the models differ\n{report}")
    return report
