"""The optax transformation that takes the same steps as a PyTorch optimizer, made of optax's own parts.

| `torch.optim`    | optax                                                          | without an equal               |
|------------------|----------------------------------------------------------------|--------------------------------|
| `Adam`, `AdamW`  | `scale_by_adam`; the decay before it (L2) or after it          | `amsgrad`                      |
| `SGD`            | `trace`; dampening as a factor after it                        | dampening 1                    |
| `RMSprop`        | `scale_by_rms` or `scale_by_stddev`, eps outside; `trace`      |                                |
| `Adagrad`        | `scale_by_rss`; `lr_decay` as a schedule                       | eps other than 0               |
| `Muon`           | `trace`, then `contrib.scale_by_muon` without its own momentum | a matrix that is part of one   |

The learning rate is applied last. Momentum is accumulated before it, as in PyTorch (`optax.rmsprop` accumulates after
it, so that its buffer has another size).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import optax
import torch
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from parity.carry.entries import Ledger
from parity.optimizer_state.state import dotted_name, kind_of, momentum_factor

Rate: TypeAlias = float | Callable[[Any], Any]


def transformation(
    kind: type[torch.optim.Optimizer], group: Mapping[str, Any], rate: Rate, ledger: Ledger
) -> optax.GradientTransformation:
    """Return the transformation with the steps of PyTorch's optimizer of this type with these options.

    Args:
        group: A parameter group of the optimizer.
        rate: Learning rate, or its schedule: a function of the number of steps taken.
        ledger: The tensors of both models; Muon needs to know which axis of a matrix is which.

    Raises:
        ValueError: optax has no equal of these options (see `differences`).
    """
    problems = differences(kind, group)
    if problems:
        raise ValueError("; ".join(problems))
    decay = float(group.get("weight_decay", 0.0))
    decoupled = kind_of(kind) is torch.optim.Muon or bool(group.get("decoupled_weight_decay", False))
    added = [optax.add_decayed_weights(decay)] if decay else []
    parts = [optax.scale(-1.0)] if group.get("maximize") else []
    parts += [] if decoupled else added
    parts += _directions(kind_of(kind), group, ledger)
    parts += added if decoupled else []
    return optax.chain(*parts, optax.scale_by_learning_rate(_decayed(rate, float(group.get("lr_decay", 0.0)))))


def differences(kind: type[torch.optim.Optimizer], group: Mapping[str, Any]) -> list[str]:
    """Return the options of a group that optax has no equal of, each with what to do about it."""
    found = []
    if group.get("amsgrad"):
        found.append(
            "amsgrad=True has no equal in optax: optax.amsgrad takes the maximum after the bias correction, PyTorch "
            "before it; use amsgrad=False"
        )
    if kind is torch.optim.Adagrad and group["eps"] != 0:
        found.append(
            f"Adagrad's eps={group['eps']:g} has no equal in optax, which adds eps under the root, PyTorch to the root:"
            " set eps to 0 in every group, and let initial_accumulator_value be above 0"
        )
    if kind is torch.optim.SGD and group["momentum"] and group["dampening"] == 1:
        found.append("dampening=1 has no equal in optax: no gradient would enter the momentum; use dampening below 1")
    return found


def _directions(
    kind: type[torch.optim.Optimizer], group: Mapping[str, Any], ledger: Ledger
) -> list[optax.GradientTransformation]:
    """Return the parts between the gradient and the learning rate, without weight decay."""
    momentum = float(group.get("momentum", 0.0))
    traced = [optax.trace(momentum, bool(group.get("nesterov", False)))] if momentum else []
    match kind:
        case torch.optim.Adam:
            b1, b2 = (float(beta) for beta in group["betas"])
            return [optax.scale_by_adam(b1, b2, float(group["eps"]))]
        case torch.optim.SGD:
            factor = momentum_factor(kind, group)
            return traced if factor == 1 else [*traced, optax.scale(factor)]
        case torch.optim.RMSprop:
            scaled = optax.scale_by_stddev if group["centered"] else optax.scale_by_rms
            return [scaled(float(group["alpha"]), float(group["eps"]), eps_in_sqrt=False), *traced]
        case torch.optim.Adagrad:
            return [optax.scale_by_rss(float(group["initial_accumulator_value"]), eps=0.0)]
    return [*traced, *_orthogonal(group, ledger)]


def _orthogonal(group: Mapping[str, Any], ledger: Ledger) -> list[optax.GradientTransformation]:
    """Return Muon's orthogonalization, and its factor of the learning rate for the shape of a matrix.

    optax's own momentum is off (beta 0): its bias correction changes the direction of Nesterov's. The smallest eps,
    since optax adds it to the norm, whereas PyTorch's is only a lower limit of it.
    """

    def axes(tree: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: matrix_axes(dotted_name(path), ledger), tree)

    def factor(path: Any, x: jax.Array) -> jax.Array:
        numbers = matrix_axes(dotted_name(path), ledger)
        rows, columns = x.shape[numbers.output_axis], x.shape[numbers.reduction_axis]
        if group["adjust_lr_fn"] == "match_rms_adamw":
            return 0.2 * math.sqrt(max(rows, columns)) * x
        return math.sqrt(max(1, rows / columns)) * x

    orthogonal = scale_by_muon(
        tuple(group["ns_coefficients"]),
        int(group["ns_steps"]),
        beta=0.0,
        eps=1e-30,
        nesterov=False,
        weight_dimension_numbers=axes,
    )
    return [orthogonal, optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(factor, updates))]


def matrix_axes(name: str, ledger: Ledger) -> MuonDimensionNumbers:
    """Return which axes of a tensor of JAX are columns (inputs) and rows (outputs) of PyTorch's matrix.

    Raises:
        ValueError: The tensor is not one whole matrix of PyTorch, or a stack of them.
    """
    entries = [entry for entry in ledger if entry.jax == name]
    for e in entries:
        whole = not (e.torch_box or e.into or e.split or e.added or e.flip) and len(e.torch_shape) == 2
        if not whole or len(e.jax_shape) != 2 + (e.index is not None):
            raise ValueError(
                f"{name} of JAX is not one matrix as {e.torch} of PyTorch is, and Muon orthogonalizes whole matrices: "
                "leave it to AdamW"
            )
    first = entries[0]
    offset = int(first.index is not None)
    rows, columns = (1, 0) if first.axes == (1, 0) else (0, 1)
    return MuonDimensionNumbers(columns + offset, rows + offset)


def _decayed(rate: Rate, decay: float) -> Rate:
    """Return Adagrad's learning rate, which falls with the number of steps."""
    if not decay:
        return rate
    return lambda count: (rate(count) if callable(rate) else rate) / (1 + count * decay)
