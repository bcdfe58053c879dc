"""Fast check: mostly float64, with JAX uncompiled, as compilation takes longer than many short runs."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import torch
from flax import nnx

import parity
from parity.carry.program import Program
from parity.carry.rules import Rules
from parity.judgement.rows import pairing_rows, weight_rows
from parity.measure.gates import Gates
from parity.proof.layers import derivatives_needed, judged_layers
from parity.proof.stages import Proof
from parity.report.report import Report
from t2t_parity.selftest.foreign.architecture import Inputs


def fast_check(
    torch_model: torch.nn.Module,
    jax_model: nnx.Module,
    inputs: Inputs,
    *,
    rules: Rules | None = None,
    backward: bool = False,
    training: bool = False,
    float32: bool = False,
    opaque: bool = False,
    gates: Gates | None = None,
) -> Report:
    """Check weights and every layer in float64, in free and forced mode, and find causes.

    Args:
        backward: Also check the gradients of the default loss and every module's own derivative.
        training: Also check training mode, with shared dropout masks.
        float32: Also check the forward pass in float32.
        opaque: Give the JAX model as a function whose modules are not known.

    Raises:
        ValueError: See `parity.check`.
    """
    start = time.perf_counter()
    if opaque:
        jax_model = as_function(jax_model)
    with jax.disable_jit():
        proof = Proof.of(torch_model, jax_model, inputs, rules or Rules(), gates or Gates())
        rows = weight_rows(proof.ledger, torch_model, jax_model, same_trainable=not opaque)
        rows += [*proof.missing, *pairing_rows(proof.pairing)]
        layers = judged_layers(proof, rows, proof.forward64())
        rows, causes = layers.rows, layers.causes
        loss = proof.default_loss
        if backward and loss is not None:
            gradients = proof.gradients(loss)
            rows += gradients
            if not proof.by_values or derivatives_needed(proof, rows, gradients):
                found, named = proof.derivatives(loss, gradients)
                rows, causes = rows + found, causes + named
        if float32:
            rows += proof.forward32()
    if training and loss is not None:  # compiled: only then does flax allow a gradient to update running statistics
        found, named = proof.training()
        rows, causes = rows + found, causes + named
    return Report(
        rows=tuple(rows),
        ledger=proof.ledger,
        layers=layers.names(proof),
        unpaired=layers.unpaired(proof),
        notes=proof.all_notes,
        settings={"seconds": round(time.perf_counter() - start, 1)},
        environment={},
        causes=causes,
    )


def as_function(jax_model: nnx.Module) -> Program:
    """Return the model in evaluation mode as a function of its weights, without modules.

    It computes in the dtype of its weights, as the models of the pairs do; layers of flax hold a dtype of their own.
    """
    jax_model.eval()
    parts: Any = nnx.split(jax_model, nnx.RngState, ...)
    graphdef, draws, weights = parts

    def model(weights: nnx.State, *args: Any, **kwargs: Any) -> Any:
        dtype = jnp.result_type(*(x.dtype for x in jax.tree.leaves(weights) if jnp.issubdtype(x.dtype, jnp.floating)))
        merged = nnx.merge(graphdef, draws, weights)
        module: Any
        for _, module in nnx.iter_modules(merged):
            if getattr(module, "dtype", None) is not None:
                module.dtype = dtype
        return merged(*args, **kwargs)

    return parity.function(model, weights).as_nnx()
