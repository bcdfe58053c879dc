"""Fast check: mostly float64, with JAX uncompiled, as compilation takes longer than many short runs."""

from __future__ import annotations

import time

import jax
import torch
from flax import nnx

from parity.carry.rules import Rules
from parity.judgement.rows import pairing_rows, weight_rows
from parity.judgement.small_elements import is_small
from parity.measure.gates import Gates
from parity.proof.stages import Proof
from parity.report.report import Report
from t2t_parity.selftest.foreign.architecture import Inputs


def judge(
    torch_model: torch.nn.Module,
    jax_model: nnx.Module,
    inputs: Inputs,
    *,
    rules: Rules | None = None,
    backward: bool = False,
    training: bool = False,
    float32: bool = False,
    gates: Gates | None = None,
) -> Report:
    """Check weights and every layer in float64, in free and forced mode, and find causes.

    Args:
        backward: Also check the gradients of the default loss and every module's own derivative.
        training: Also check training mode, with shared dropout masks.
        float32: Also check the forward pass in float32.

    Raises:
        ValueError: See `parity.check`.
    """
    start = time.perf_counter()
    with jax.disable_jit():
        proof = Proof.of(torch_model, jax_model, inputs, rules or Rules(), gates or Gates())
        rows = weight_rows(proof.ledger, torch_model, jax_model) + pairing_rows(proof.pairing) + proof.forward64()
        causes = proof.causes([row for row in rows if not is_small(row)])
        loss = proof.default_loss
        if backward and loss is not None:
            gradients = proof.gradients(loss)
            found, named = proof.derivatives(loss, gradients)
            rows += gradients
            rows, causes = rows + found, causes + named
        if float32:
            rows += proof.forward32()
    if training and loss is not None:  # compiled: only then does flax allow a gradient to update running statistics
        found, named = proof.training()
        rows, causes = rows + found, causes + named
    return Report(
        rows=tuple(rows),
        ledger=proof.ledger,
        layers=tuple((pair.name, type(pair.module).__name__) for pair in proof.pairing.pairs),
        unpaired=proof.pairing.unpaired,
        notes=proof.all_notes,
        settings={"seconds": round(time.perf_counter() - start, 1)},
        environment={},
        causes=causes,
    )
