"""A check, quickly: mostly float64, and JAX uncompiled: compiling takes longer than many short runs."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import jax
import numpy as np
import torch
from flax import nnx

from parity.backward import backward_rows
from parity.causes import find_causes
from parity.causes.training import statistics_cause
from parity.check import Proof
from parity.compare import Gates, Row
from parity.convert import to_numpy
from parity.judge import weight_rows
from parity.report import Cause, Report
from parity.rules import Rules
from parity.runs import JaxSide, TorchSide
from parity.training import training_rows


def judge(
    torch_model: torch.nn.Module,
    jax_model: nnx.Module,
    inputs: np.ndarray,
    *,
    backward: bool = False,
    training: bool = False,
    float32: bool = False,
    gates: Gates | None = None,
) -> Report:
    """Weights and every layer in float64, free and forced, with causes.

    With `backward` every module's own derivative too; with `training` training mode with shared masks; with `float32`
    the forward pass in float32 too.

    Raises:
        ValueError: see `parity.check`.
    """
    start = time.perf_counter()
    with jax.disable_jit():
        proof = Proof.of(torch_model, jax_model, inputs, Rules(), gates or Gates())
        ours, theirs = proof.torch_side("float64"), proof.jax_side("float64")
        rows = weight_rows(proof.ledger, torch_model, jax_model) + proof.forward64()
        causes = find_causes(ours, theirs, proof.arrays, proof.pairing, rows)
        if backward:
            found, derivative_causes = backward_rows(
                ours, theirs, proof.arrays, proof.pairing, proof.ledger, proof.gates
            )
            rows, causes = rows + found, causes + derivative_causes
        if float32:
            rows += proof.forward32()
    if training:  # compiled: flax lets a gradient change running statistics only there
        shared = (proof.arrays, proof.axes, proof.ledger, proof.rules, proof.gates)
        rows += training_rows(torch_model, jax_model, *shared)
        causes += training_causes(proof, rows)
    return Report(
        rows=tuple(rows),
        ledger=proof.ledger,
        layers=tuple((pair.name, type(pair.module).__name__) for pair in proof.pairing.pairs),
        unpaired=proof.pairing.unpaired,
        settings={"seconds": round(time.perf_counter() - start, 1)},
        environment={},
        causes=causes,
    )


def training_causes(proof: Proof, rows: Sequence[Row]) -> tuple[Cause, ...]:
    """What training mode alone shows: the law of a dropout, or the rule by which running statistics move."""
    failed = [row for row in rows if row.mode == "train" and not row.passed]
    laws = [Cause(row.name, row.kind, row.note or row.kind, row.error, 0.0) for row in failed if "dropout" in row.kind]
    buffers = [row.name for row in failed if row.kind == "buffer"]
    if not buffers:
        return tuple(laws)
    ours = TorchSide.of(proof.torch_model, "float64", training=True)
    ours.forward(proof.arrays)
    theirs = JaxSide.of(proof.jax_model, "float64", proof.axes, training=True).updated(proof.arrays, {})
    modules, after = dict(ours.model.named_modules()), ours.model.state_dict()
    entries = {entry.torch: entry for entry in proof.ledger}
    for name in buffers:
        path = name.rpartition(".")[0]
        shape = proof.pairing.shapes[path, 0].inputs[0]
        cause = statistics_cause(
            to_numpy(proof.torch_model.state_dict()[name].double()),
            to_numpy(after[name]),
            entries[name].to_torch(theirs[entries[name].jax]),
            modules[path].momentum,
            math.prod(shape) // shape[1],
        )
        if cause is not None:
            laws.append(Cause(path, cause.switch, cause.description, cause.error_before, cause.error_after))
    return tuple(laws)
