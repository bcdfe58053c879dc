"""Training mode, proven with the same draws on both sides.

Random numbers of two frameworks never agree, so dropout and stochastic depth are not drawn but handed out: every such
module's own rate is set to zero, and what comes out of it is multiplied with one mask, the same in both frameworks.
What the modules themselves would draw is compared by its law: the rate, and which axes share one draw.
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from flax import nnx

from parity.align import Axes
from parity.causes.training import statistics_cause
from parity.compare import Gates, Row, rel_f
from parity.convert import Entry, Ledger, jax_variables, to_numpy
from parity.copies import torch_copy as copied
from parity.judge import float32_gradient_rows, gradient_rows
from parity.losses import Loss, default_loss
from parity.pairing import Pair, pair_calls
from parity.report import Cause
from parity.rules import Rules
from parity.runs import JaxSide, TorchSide

RATES = ("p", "drop_prob", "rate")
"""What PyTorch modules call their dropout rate: torch's, timm's, ours."""


def training_rows(
    torch_model: torch.nn.Module,
    jax_model: nnx.Module,
    arrays: Sequence[np.ndarray],
    axes: Sequence[Axes],
    ledger: Ledger,
    rules: Rules,
    gates: Gates,
    loss: Loss | None = None,
    seed: int = 0,
) -> tuple[list[Row], tuple[Cause, ...]]:
    """Laws of the random modules; then, with shared masks, loss, gradients and updated buffers in training mode.

    With the causes of what is wrong there, as far as it can be told.
    """
    silent_torch, silent_jax = silenced(torch_model, jax_model, rules)
    sides = TorchSide.of(silent_torch, "float64", training=True), JaxSide.of(silent_jax, "float64", axes, training=True)
    pairing = pair_calls(*sides, arrays, rules, torch_model)
    random = [pair for pair in pairing.pairs if isinstance(_jax_module(jax_model, pair), nnx.Dropout)]
    rows = [row for pair in _first_calls(random) for row in _law_rows(pair, _jax_module(jax_model, pair))]
    loss = loss or default_loss(pairing.shapes[pairing.root.torch].outputs, pairing.root.output_axes)
    causes = _law_causes(rows)
    torch_masks, jax_masks = draw_masks(random, jax_model, pairing.shapes, seed)

    results = {}
    for precision in ("float64", "float32"):
        ours = TorchSide.of(silent_torch, precision, training=True)
        theirs = JaxSide.of(silent_jax, precision, axes, training=True)
        wanted = ours.gradients(arrays, loss, masks=torch_masks).within(ledger)
        if precision == "float64":
            moved = _moved(ledger, torch_model, ours.model, theirs)
            updated = theirs.updated(arrays, jax_masks) if moved else {}
            buffers = _buffer_rows(moved, updated, ours.model, gates)
            wrong = [entry for entry, row in zip(moved, buffers, strict=True) if not row.passed]
            causes += _statistics_causes(torch_model, ours.model, updated, wrong, pairing.shapes)
            rows += buffers
        results[precision] = wanted, theirs.gradients(arrays, loss, ledger, wanted.params.keys(), masks=jax_masks)
    rows += gradient_rows(*results["float64"], gates, mode="train")
    rows += float32_gradient_rows(results["float64"][0], *results["float32"], gates, mode="train")
    return rows, tuple(causes)


def _law_causes(rows: Sequence[Row]) -> list[Cause]:
    """What the laws of the random modules show by themselves."""
    failed = [row for row in rows if "dropout" in row.kind and not row.passed]
    return [Cause(row.name, row.kind, row.note or row.kind, row.error, 0.0) for row in failed]


def _statistics_causes(
    before: torch.nn.Module,
    after: torch.nn.Module,
    theirs: Mapping[str, np.ndarray],
    wrong: Sequence[Entry],
    shapes: Any,
) -> list[Cause]:
    """By which rule running statistics move in JAX, from one step of both."""
    modules, old, new = dict(after.named_modules()), before.state_dict(), after.state_dict()
    causes = []
    for entry in wrong:
        path = entry.torch.rpartition(".")[0]
        momentum = getattr(modules[path], "momentum", None)
        if momentum is None or (path, 0) not in shapes:
            continue
        shape = shapes[path, 0].inputs[0]
        states = to_numpy(old[entry.torch].double()), to_numpy(new[entry.torch]), entry.to_torch(theirs[entry.jax])
        cause = statistics_cause(*states, momentum, math.prod(shape) // shape[1])
        if cause is not None:
            causes.append(Cause(path, cause.switch, cause.description, cause.error_before, cause.error_after))
    return causes


def _first_calls(pairs: Sequence[Pair]) -> list[Pair]:
    return [pair for pair in pairs if pair.torch[1] == 0]


def _jax_module(model: nnx.Module, pair: Pair) -> Any:
    return {".".join(map(str, path)): module for path, module in nnx.iter_modules(model)}[pair.jax[0]]


def _rate_name(module: torch.nn.Module) -> str | None:
    return next((name for name in RATES if isinstance(getattr(module, name, None), float | int)), None)


def silenced(torch_model: torch.nn.Module, jax_model: nnx.Module, rules: Rules) -> tuple[torch.nn.Module, nnx.Module]:
    """Copies of both models whose dropouts do nothing."""
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


def draw_masks(pairs: Sequence[Pair], jax_model: nnx.Module, shapes: Mapping, seed: int) -> tuple[dict, dict]:
    """One mask of 0 and 1 / (1 - rate) per call of a random module, in both layouts: (PyTorch's, JAX's)."""
    torch_masks, jax_masks = {}, {}
    for pair in pairs:
        module = _jax_module(jax_model, pair)
        axes = pair.output_axes[0]
        shape = shapes[pair.torch].outputs[0]
        shape = shape if axes is None else tuple(shape[axis] for axis in axes)
        shape = tuple(1 if axis in _positive(module.broadcast_dims, len(shape)) else n for axis, n in enumerate(shape))
        draw = np.random.RandomState((zlib.crc32(repr(pair.torch).encode()) + seed) % 2**32)
        keep = 1.0 - module.rate
        mask = (draw.random_sample(shape) < keep) / keep if keep > 0 else np.zeros(shape)
        jax_masks[pair.jax] = mask
        torch_masks[pair.torch] = mask if axes is None else np.ascontiguousarray(mask.transpose(np.argsort(axes)))
    return torch_masks, jax_masks


def _positive(axes: Sequence[int], rank: int) -> set[int]:
    return {axis % rank for axis in axes}


def _law_rows(pair: Pair, module: nnx.Dropout) -> list[Row]:
    """Rate and granularity of a random module: what PyTorch's draws on a cube of ones against what flax declares."""
    name = _rate_name(pair.module)
    rate = 0.0 if name is None else float(getattr(pair.module, name))
    rows = [Row(pair.name, "dropout rate", "train", "-", abs(rate - module.rate), 0.0)]
    if rate == 0.0 or module.rate == 0.0 or name is None:
        return rows
    trial = copy.deepcopy(pair.module).train()
    setattr(trial, name, 0.5)
    rank = 3
    kept = to_numpy(trial(torch.ones((16,) * rank, dtype=torch.float64)))
    shared = {axis for axis in range(rank) if (kept == kept.take([0], axis)).all()}
    values_wrong = not set(np.unique(kept)) <= {0.0, 2.0}
    wrong = values_wrong or shared != _positive(module.broadcast_dims, rank)
    note = (
        f"PyTorch shares a draw along axes {sorted(shared)}, flax along {sorted(module.broadcast_dims)}"
        if wrong
        else ""
    )
    return [*rows, Row(pair.name, "dropout draws", "train", "-", float(wrong), 0.0, note=note)]


def _moved(ledger: Ledger, before: torch.nn.Module, after: torch.nn.Module, theirs: JaxSide) -> list[Entry]:
    """Buffers that a training step changes (running statistics), in either framework."""
    old, new = before.state_dict(), after.state_dict()
    trained = {name for name, _ in before.named_parameters()}
    statistics = {name for name, v in jax_variables(theirs.model).items() if isinstance(v, nnx.BatchStat)}

    def moves(entry: Entry) -> bool:
        return not np.array_equal(to_numpy(old[entry.torch].double()), to_numpy(new[entry.torch].double()))

    buffers = [entry for entry in ledger if entry.torch not in trained and 0 not in entry.torch_shape]
    return [entry for entry in buffers if entry.jax in statistics or moves(entry)]


def _buffer_rows(
    moved: Sequence[Entry], theirs: Mapping[str, np.ndarray], after: torch.nn.Module, gates: Gates
) -> list[Row]:
    new = after.state_dict()
    errors = [rel_f(entry.to_torch(theirs[entry.jax]), to_numpy(new[entry.torch])) for entry in moved]
    return [Row(e.torch, "buffer", "train", "float64", x, gates.f64) for e, x in zip(moved, errors, strict=True)]
