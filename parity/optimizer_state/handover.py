"""`parity.optimizer_to_optax` and `parity.optimizer_to_torch`: an optimizer continues in the other framework.

PyTorch's parameter groups become the parts of `optax.partition`, one for each group, or several if the parameters of a
group have taken different numbers of steps, since optax counts the steps of a part and PyTorch those of a parameter.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax
import torch
from flax import nnx

from parity.carry.entries import Ledger
from parity.carry.wrappers import unwrapped
from parity.optimizer_state.compare import compare_transformations
from parity.optimizer_state.convert import filled, read_back
from parity.optimizer_state.rule import Rate, differences, transformation
from parity.optimizer_state.state import (
    SLOTS,
    dotted_name,
    load_state,
    parameter_names,
    parameters,
    read_torch,
    set_hyperparams,
)

FROZEN = "frozen"
"""Label of the parameters that PyTorch's optimizer does not update."""


class OptaxOptimizer(NamedTuple):
    """A transformation and its state, as `tx.init(params)` would return it."""

    tx: optax.GradientTransformation
    state: optax.OptState


def optimizer_to_optax(
    torch_optimizer: torch.optim.Optimizer,
    torch_model: torch.nn.Module,
    params: Any,
    ledger: Ledger,
    *,
    tx: optax.GradientTransformation | nnx.Optimizer | None = None,
    learning_rate: Rate | Sequence[Rate] | None = None,
    steps: int | None = None,
) -> OptaxOptimizer:
    """Return an optax transformation that continues PyTorch's optimizer, with its state.

    Supported are Adam, AdamW, SGD, RMSprop, Adagrad and Muon of `torch.optim`, with parameter groups. Moments are
    copied bit for bit, in the layouts of the weights; those of SGD with dampening and of Muon by a factor. Muon
    computes in bfloat16 in PyTorch, and in the precision of its parameters in JAX: its steps differ by that rounding.

    Args:
        torch_model: Model that provides the names of the parameters.
        params: The parameters in JAX, as for `tx.init`: an `nnx.State`, Linen's `params`, any tree whose
            dotted paths are the names in the ledger. Those that PyTorch's optimizer does not update stay fixed.
        ledger: Which tensor of PyTorch is which of `params`: from `parity.torch_to_jax`, `build_ledger` or
            `ledger_by_value`.
        tx: Your own transformation, whose state is filled, and which has to take the same steps as PyTorch's optimizer.
            Default: one is made of the parameter groups.
        learning_rate: Learning rate, or schedule by the number of steps taken; a list has one for each group. Default:
            the present rate of each group, which stays as it is. Not together with `tx`.
        steps: Number of steps taken, if a schedule counts them and PyTorch does not (SGD, Muon).

    Raises:
        ValueError: optax has no equal of this optimizer or of an option (the message says what to change); parts of the
            state have no partner (all are listed); or `tx` takes other steps.
    """
    torch_model = unwrapped(torch_model)
    if tx is None:
        return _made(torch_optimizer, torch_model, params, ledger, learning_rate, steps)
    if learning_rate is not None:
        raise ValueError("both tx and learning_rate are given: tx has a learning rate of its own, leave out the other")
    rule = tx.tx if isinstance(tx, nnx.Optimizer) else tx
    found, _ = filled(torch_optimizer, torch_model, rule.init(params), ledger, steps=steps, orthogonal=True)
    _require_same(torch_optimizer, torch_model, OptaxOptimizer(rule, found), params, ledger, steps)
    return OptaxOptimizer(rule, found)


def optimizer_to_torch(
    opt_state: optax.OptState,
    torch_optimizer: torch.optim.Optimizer,
    torch_model: torch.nn.Module,
    params: Any,
    ledger: Ledger,
    *,
    tx: optax.GradientTransformation | nnx.Optimizer | None = None,
    steps: int | None = None,
) -> int | None:
    """Copy optax's state into `torch_optimizer`, in place, so that it continues the run.

    Args:
        opt_state: State of `optimizer_to_optax`'s transformation, or of another one that takes the same steps.
        torch_optimizer: Optimizer of `torch_model`, with the same options as the transformation.
        params, ledger: As in `optimizer_to_optax`.
        tx: The transformation. Its steps are compared with those of PyTorch's optimizer; without it a warning says
            that they were not.
        steps: Number of steps taken, if optax does not count them; PyTorch needs it for Adagrad with `lr_decay`.

    Returns:
        Number of steps taken; None if optax does not count them. A learning rate scheduler is not part of PyTorch's
        optimizer: resume it with its `last_epoch`.

    Raises:
        ValueError: As in `optimizer_to_optax`. Nothing is changed then.
    """
    torch_model = unwrapped(torch_model)
    for group in torch_optimizer.param_groups:
        _require_equal(torch_optimizer, group)
    names, state, values, count = read_back(
        opt_state, ledger, torch_model, torch_optimizer, steps=steps, orthogonal=True
    )
    before = torch_optimizer.state_dict()
    set_hyperparams(torch_optimizer.param_groups, values)
    load_state(torch_optimizer, names, state)
    if tx is None:
        warnings.warn(
            "optax's state does not tell which steps it takes: pass tx= to have them compared with PyTorch's",
            stacklevel=2,
        )
        return count
    rule = tx.tx if isinstance(tx, nnx.Optimizer) else tx
    try:
        _require_same(torch_optimizer, torch_model, OptaxOptimizer(rule, opt_state), params, ledger, count or steps)
    except ValueError:
        torch_optimizer.load_state_dict(before)
        raise
    return count


def _made(
    optimizer: torch.optim.Optimizer,
    model: torch.nn.Module,
    params: Any,
    ledger: Ledger,
    learning_rate: Rate | Sequence[Rate] | None,
    steps: int | None,
    *,
    quiet: bool = False,
) -> OptaxOptimizer:
    """Make the transformation of the parameter groups, and fill its state."""
    for group in optimizer.param_groups:
        _require_equal(optimizer, group)
    rates = _rates(optimizer, learning_rate, quiet=quiet)
    labels, alone = _labels(optimizer, model, params, ledger)
    if alone and not quiet:
        warnings.warn(f"{', '.join(alone)} of JAX has no partner in PyTorch: it stays fixed", stacklevel=3)
    used = dict.fromkeys(labels.values())
    made = {
        label: transformation(type(optimizer), optimizer.param_groups[label[0]], rates[label[0]], ledger)
        for label in used
        if label is not None
    }
    if len(used) == 1:
        (tx,) = made.values()
    else:
        known = {_text(label): part for label, part in made.items()}
        tx = optax.partition(known | ({FROZEN: optax.set_to_zero()} if None in used else {}), _tree(labels))
    count = steps if any(callable(rate) for rate in rates) else None
    state, _ = filled(optimizer, model, tx.init(params), ledger, steps=count, orthogonal=True)
    return OptaxOptimizer(tx, state)


Label = tuple[int, int]
"""A parameter group, and the number of steps that some of its parameters have taken."""


def _text(label: Label | None) -> str:
    return FROZEN if label is None else f"group {label[0]} at step {label[1]}"


def _tree(labels: Mapping[str, Label | None]) -> Any:
    """Return a function that gives every leaf of a tree the text of its label."""
    return lambda tree: jax.tree_util.tree_map_with_path(lambda path, _: _text(labels[dotted_name(path)]), tree)


def _labels(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module, params: Any, ledger: Ledger
) -> tuple[dict[str, Label | None], list[str]]:
    """Return the label of each leaf of `params` (None: not updated), and the leaves without partner.

    Raises:
        ValueError: A parameter of PyTorch's optimizer is not in `params`, is complex, or shares a tensor of JAX with
            parameters of another group.
    """
    names = parameter_names(model, {entry.torch for entry in ledger})
    counts = read_torch(optimizer, names, fresh=True).steps
    positions = {id(group): i for i, group in enumerate(optimizer.param_groups)}
    updated: dict[str, Label] = {}
    for group, p in parameters(optimizer):
        if p.requires_grad and id(p) in names:
            if p.is_complex():
                raise ValueError(f"{names[id(p)]} is complex, for which optimizers differ: train its parts apart")
            updated[names[id(p)]] = (positions[id(group)], counts.get(names[id(p)], 0))
    leaves = [dotted_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    found: dict[str, Label | None] = {}
    for name in leaves:
        partners = {updated.get(entry.torch) for entry in ledger if entry.jax == name}
        if len(partners) > 1:
            ours = ", ".join(entry.torch for entry in ledger if entry.jax == name)
            raise ValueError(
                f"{name} of JAX holds {ours} of PyTorch, which are not in one parameter group or have not taken the "
                "same number of steps: optax updates a tensor as one"
            )
        found[name] = partners.pop() if partners else None
    missing = [e.torch for e in ledger if e.torch in updated and e.jax not in found]
    if missing:
        raise ValueError(f"params have no partner of {', '.join(missing)}: pass the tree that tx.init takes")
    if not any(label is not None for label in found.values()):
        raise ValueError("PyTorch's optimizer updates none of params: it belongs to another model")
    paired = {entry.jax for entry in ledger}
    return found, [name for name in leaves if name not in paired]


def _rates(
    optimizer: torch.optim.Optimizer, learning_rate: Rate | Sequence[Rate] | None, *, quiet: bool
) -> Sequence[Rate]:
    groups = optimizer.param_groups
    if isinstance(learning_rate, Sequence):
        if len(learning_rate) != len(groups):
            raise ValueError(f"learning_rate has {len(learning_rate)} entries for {len(groups)} parameter groups")
        return learning_rate
    if learning_rate is not None:
        return [learning_rate] * len(groups)
    if not quiet and any("initial_lr" in group for group in groups):
        warnings.warn(
            "PyTorch's learning rate has a scheduler, optax's stays at its present value: pass learning_rate=, a "
            "function of the number of steps taken",
            stacklevel=4,
        )
    return [float(group["lr"]) for group in groups]


def _require_equal(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> None:
    """Raise ValueError if optax has no equal of the optimizer or of the options of one of its groups."""
    kind = type(optimizer)
    if kind not in SLOTS:
        known = ", ".join(known.__name__ for known in SLOTS)
        raise ValueError(f"{kind.__name__} cannot be handed over, these optimizers of torch.optim can: {known}")
    problems = differences(kind, group)
    if problems:
        raise ValueError("; ".join(problems))


def _require_same(
    optimizer: torch.optim.Optimizer,
    model: torch.nn.Module,
    theirs: OptaxOptimizer,
    params: Any,
    ledger: Ledger,
    steps: int | None,
) -> None:
    """Raise ValueError if `theirs` takes other steps than PyTorch's optimizer; warn if only the rates differ."""
    ours = _made(optimizer, model, params, ledger, None, steps, quiet=True)
    labels, _ = _labels(optimizer, model, params, ledger)
    groups = {name: None if label is None else label[0] for name, label in labels.items()}
    error, rates = compare_transformations(ours, theirs, params, groups)
    if error is not None:
        raise ValueError(f"PyTorch's {type(optimizer).__name__} and optax's transformation take other steps: {error}")
    for i, factor in rates.items():
        lr = float(optimizer.param_groups[i]["lr"])
        if abs(factor - 1) > 1e-6:
            warnings.warn(
                f"at the next step the learning rate is {lr:.6g} in PyTorch, {factor * lr:.6g} in optax: set "
                "them alike",
                stacklevel=4,
            )
