"""Conversion of optimizer state between `torch.optim` and optax, to change frameworks at any training step.

| `torch.optim`           | optax                                                       |
|-------------------------|-------------------------------------------------------------|
| exp_avg, exp_avg_sq     | `ScaleByAdamState`: mu, nu                                  |
| square_avg, grad_avg    | `ScaleByRmsState`: nu, or `ScaleByRStdDevState`: nu, mu     |
| sum                     | `ScaleByRssState`: sum_of_squares                           |
| step                    | every `count`: Adam's own and the positions of schedules    |
| momentum_buffer         | `TraceState`: trace (see `momentum_factor`)                 |
| lr, betas, eps ...      | hyperparameters held by `optax.inject_hyperparams`          |

Moments are copied bit for bit, in the layouts of the weights' ledger. The optax states may be anywhere in a chain,
masked or partitioned; parameters may be any tree (an `nnx.State`, nested or flat dictionaries): key paths are joined
to dotted names.

What neither state contains cannot be converted, and the caller has to set it equally on both sides: Nesterov or not,
Adam or Adamax (they have the same buffers), and the rates, betas and decays that optax keeps in closures. With `tx`,
the transformation itself, both rules are compared by their updates (see `parity.optimizer_state.same_rule`), and the
conversion fails if they differ; without it a warning says that they were not compared.

A parameter without state in PyTorch has zero moments: AdamW starts there, and SGD's first buffer is the gradient
itself, which is what a buffer of zeros gives as long as dampening is 0; with dampening it raises.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx

from parity.carry.convert import Ledger, StateDict, jax_arrays, to_numpy, to_tensor, torch_arrays
from parity.carry.wrappers import unwrapped
from parity.optimizer_state.same_rule import compare_rules
from parity.optimizer_state.state import (
    SLOTS,
    OptaxState,
    in_parts,
    load_state,
    named,
    parameter_names,
    parts,
    read_optax,
    read_torch,
    set_hyperparams,
    torch_hyperparams,
    walk,
)


def optimizer_to_jax(
    torch_optimizer: torch.optim.Optimizer,
    torch_model: torch.nn.Module,
    opt_state: optax.OptState,
    ledger: Ledger,
    *,
    steps: int | None = None,
    tx: optax.GradientTransformation | nnx.Optimizer | None = None,
) -> optax.OptState:
    """Return `opt_state` with the state of `torch_optimizer` filled in.

    Args:
        torch_model: Model that provides the parameter names.
        opt_state: State to fill, e.g. from the transformation's `init`.
        ledger: Ledger of the weights (see `parity.torch_to_jax`).
        steps: Number of steps taken, if optax counts them (a schedule) and PyTorch does not (SGD).
        tx: Transformation that `opt_state` belongs to; compared with PyTorch's optimizer.

    Raises:
        ValueError: Parts of either state have no partner or do not fit (all are listed), or `tx` follows another rule
            than PyTorch's optimizer.
    """
    torch_model = unwrapped(torch_model)
    found, counts = filled(torch_optimizer, torch_model, opt_state, ledger, steps=steps)
    _compare(torch_optimizer, torch_optimizer.param_groups, torch_model, tx, found, ledger, next(iter(counts), 0))
    return found


def filled(
    torch_optimizer: torch.optim.Optimizer,
    torch_model: torch.nn.Module,
    opt_state: optax.OptState,
    ledger: Ledger,
    *,
    steps: int | None = None,
    orthogonal: bool = False,
) -> tuple[optax.OptState, list[int]]:
    """Return `opt_state` with PyTorch's state filled in, and the numbers of steps taken; see `optimizer_to_jax`.

    Each part of a partitioned state may have taken another number of steps. `orthogonal` as in `walk`.
    """
    names = parameter_names(torch_model, {entry.torch for entry in ledger})
    ours, theirs = read_torch(torch_optimizer, names), read_optax(opt_state, orthogonal=orthogonal)
    problems = [*ours.problems, *theirs.problems, *_unpaired(ours.moments, theirs.moments, ledger)]
    values, conflicts = torch_hyperparams(torch_optimizer, {name for name, _ in theirs.hyperparams})
    taken = []
    for held_state in (read_optax(part, orthogonal=orthogonal) for part in parts(opt_state)):
        counts = {name: ours.steps[name] for name in ours.steps if name in _partners(held_state, ledger)}
        each = {*counts.values(), *(() if steps is None else (steps,))}
        if len(each) > 1:
            listed = (f"{name} {count}" for name, count in counts.items())
            said = () if steps is None else (f"steps={steps} was passed",)
            problems.append(f"one count of steps is needed, found {', '.join((*listed, *said))}")
        elif not each and held_state.counts:
            problems.append("optax counts steps and this PyTorch optimizer does not: pass steps=")
        taken.append(next(iter(each), 0))
    _raise([*problems, *conflicts])
    arrays = {slot: jax_arrays(_within(ledger, moments), moments) for slot, moments in ours.moments.items()}

    def part(state: Any, count: int) -> Any:
        def write(slot: str, name: str, leaf: Any) -> Any:
            match slot:
                case "count":
                    return _like(leaf, np.asarray(count, np.int64))
                case "hyperparam":
                    return _like(leaf, np.asarray(values[name]))
            return _like(leaf, arrays[slot][name])

        return walk(state, write, orthogonal=orthogonal)

    return in_parts(opt_state, [part(x, count) for x, count in zip(parts(opt_state), taken, strict=True)]), taken


def _partners(held_state: OptaxState, ledger: Ledger) -> set[str]:
    """Return PyTorch's names of the parameters whose moments are in a part of optax's state."""
    held = {name for moments in held_state.moments.values() for name in moments}
    return {entry.torch for entry in ledger if entry.jax in held}


def _compare(
    optimizer: torch.optim.Optimizer,
    groups: Sequence[Mapping[str, Any]],
    torch_model: torch.nn.Module,
    tx: optax.GradientTransformation | nnx.Optimizer | None,
    opt_state: optax.OptState,
    ledger: Ledger,
    steps: int,
) -> None:
    """Raise ValueError if the rules differ; warn if they were not compared or the learning rates differ."""
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD):
        told = [f"the rule of {type(optimizer).__name__} was not compared: parity.optimizer_to_optax does"]
    elif tx is None:
        told = [
            "optax's state does not tell its rule (Adam, Adamax and nadam keep the same, AdamW's decay none): pass "
            "tx= to have it compared with PyTorch's"
        ]
    else:
        rule = tx.tx if isinstance(tx, nnx.Optimizer) else tx
        problems, told = compare_rules(optimizer, groups, torch_model, rule, opt_state, ledger, steps)
        _raise(problems)
    for text in told:
        warnings.warn(text, stacklevel=3)


def optimizer_to_torch(
    opt_state: optax.OptState,
    ledger: Ledger,
    torch_model: torch.nn.Module,
    torch_optimizer: torch.optim.Optimizer,
    *,
    tx: optax.GradientTransformation | nnx.Optimizer | None = None,
) -> int | None:
    """Copy `opt_state` into `torch_optimizer`, in place; for `tx` see `optimizer_to_jax`.

    Returns:
        Number of steps taken; None if optax does not count them. A learning rate scheduler is not part of PyTorch's
        optimizer: resume it with its `last_epoch`.

    Raises:
        ValueError: Parts of either state have no partner or do not fit (all are listed), or `tx` follows another
            rule. Nothing is changed then.
    """
    torch_model = unwrapped(torch_model)
    names, state, set_to, steps = read_back(opt_state, ledger, torch_model, torch_optimizer)
    groups = [{key: value for key, value in group.items() if key != "params"} for group in torch_optimizer.param_groups]
    set_hyperparams(groups, set_to)
    _compare(torch_optimizer, groups, torch_model, tx, opt_state, ledger, steps or 0)
    set_hyperparams(torch_optimizer.param_groups, set_to)
    load_state(torch_optimizer, names, state)
    return steps


def read_back(
    opt_state: optax.OptState,
    ledger: Ledger,
    torch_model: torch.nn.Module,
    torch_optimizer: torch.optim.Optimizer,
    *,
    steps: int | None = None,
    orthogonal: bool = False,
) -> tuple[dict[int, str], dict[str, dict[str, Any]], dict[str, float], int | None]:
    """Return what `optimizer_to_torch` writes: parameter names by id, state by name, hyperparameters, steps taken.

    `steps` stands in where optax does not count them; `orthogonal` as in `walk`.
    """
    names = parameter_names(torch_model, {entry.torch for entry in ledger})
    ours, theirs = read_torch(torch_optimizer, names, fresh=True), read_optax(opt_state, orthogonal=orthogonal)
    problems = [*ours.problems, *theirs.problems, *_unpaired(ours.moments, theirs.moments, ledger)]
    taken: dict[str, int] = {}
    largest = []
    for held_state in (read_optax(part, orthogonal=orthogonal) for part in parts(opt_state)):
        counts = sorted({int(count) for count in held_state.counts})
        if len(counts) > 1:
            problems.append(f"one count of steps is needed, optax's state has {', '.join(map(str, counts))}")
        largest += counts[-1:]
        taken |= dict.fromkeys(_partners(held_state, ledger), counts[-1] if counts else steps or 0)
    values = dict(theirs.hyperparams)
    problems += [
        f"optax's state holds {name} twice" for name, v in theirs.hyperparams if float(v) != float(values[name])
    ]
    present, conflicts = torch_hyperparams(torch_optimizer, values)
    # PyTorch has no eps_root, and groups without weight decay stay without it.
    unset = [name for name in ("eps_root", "weight_decay") if present.get(name) == 0 and float(values[name]) != 0]
    problems += [f"the injected hyperparameter {name} has no place in PyTorch's groups" for name in unset]
    _raise([*problems, *conflicts])
    partners = {slot: key for key, slot in SLOTS[type(torch_optimizer)].items()}
    state: dict[str, dict[str, Any]] = {}
    for slot, leaves in theirs.moments.items():
        arrays = {name: np.asarray(leaf) for name, leaf in leaves.items()}
        for name, array in torch_arrays(_within(ledger, ours.moments[slot]), arrays).items():
            factor = ours.factors.get(name, 1.0) if partners[slot] == "momentum_buffer" else 1.0
            state.setdefault(name, {})[partners[slot]] = to_tensor(array if factor == 1.0 else array * factor)
    for name in ours.steps:
        state[name]["step"] = torch.tensor(float(taken[name]))
    set_to = {name: float(value) for name, value in values.items()}
    return names, state, set_to, max(largest, default=steps)


def ema_to_jax(ema: StateDict, like: Any, ledger: Ledger) -> Any:
    """Convert a moving average of PyTorch's `state_dict` to a tree with the structure of `like`, bit for bit.

    Names in the ledger's `torch_only` are left out.

    Raises:
        ValueError: Some names have no partner; all of them are listed.
    """
    moments = {name: to_numpy(value) for name, value in ema.items() if name not in ledger.torch_only}
    leaves: dict[str, Any] = {}
    named(like, lambda name, leaf: leaves.setdefault(name, leaf))
    wanted = {name: leaf for name, leaf in leaves.items() if name not in ledger.jax_only}
    _raise(_unpaired({"average": moments}, {"average": wanted}, ledger))
    arrays = jax_arrays(_within(ledger, moments), moments)
    return named(like, lambda name, leaf: _like(leaf, arrays[name]) if name in arrays else leaf)


def ema_to_torch(ema: Any, ledger: Ledger) -> dict[str, torch.Tensor]:
    """Convert a moving average in JAX (any tree) to a `state_dict` of PyTorch, bit for bit, without `torch_only` names.

    Raises:
        ValueError: Some names are missing or unknown; all of them are listed.
    """
    leaves: dict[str, np.ndarray] = {}
    named(ema, lambda name, leaf: leaves.setdefault(name, np.asarray(leaf)))
    expected = {entry.jax for entry in ledger}
    problems = [f"{name} is missing" for name in expected - leaves.keys()]
    problems += [f"{name} is unknown" for name in leaves if name not in expected and name not in ledger.jax_only]
    _raise(sorted(problems))
    return {name: to_tensor(array) for name, array in torch_arrays(ledger, leaves).items()}


def _unpaired(
    ours: Mapping[str, Mapping[str, Any]], theirs: Mapping[str, Mapping[str, Any]], ledger: Ledger
) -> list[str]:
    """Return every difference between the sets of moments of both sides."""
    problems = []
    for slot in dict.fromkeys((*ours, *theirs)):
        a, b = ours.get(slot, {}), theirs.get(slot, {})
        problems += [
            f"{slot} of {name} is not in the ledger"
            for name in (*(a.keys() - {e.torch for e in ledger}), *(b.keys() - {e.jax for e in ledger}))
        ]
        for entry in ledger:
            if entry.torch in a and entry.jax in b:
                found = (*_kind(a[entry.torch]), *_kind(b[entry.jax]))
                if (found[0], found[2]) != (entry.torch_shape, entry.jax_shape) or found[1] != found[3]:
                    problems.append(
                        f"{slot} of {entry.torch} {found[1]} {list(found[0])} does not fit "
                        f"{entry.jax} {found[3]} {list(found[2])}"
                    )
            elif entry.torch in a:
                problems.append(f"{slot} of {entry.torch} in PyTorch has no partner {entry.jax} in JAX")
            elif entry.jax in b:
                problems.append(f"{slot} of {entry.jax} in JAX has no partner {entry.torch} in PyTorch")
    return problems


def _kind(array: Any) -> tuple[tuple[int, ...], str]:
    return tuple(array.shape), str(array.dtype)


def _within(ledger: Ledger, names: Mapping[str, Any]) -> Ledger:
    """Return the ledger's entries for these PyTorch tensors only."""
    return Ledger(tuple(entry for entry in ledger if entry.torch in names))


def _like(leaf: Any, array: np.ndarray) -> jax.Array:
    """Return `array` with the dtype and sharding of `leaf`."""
    value = jnp.asarray(array.astype(leaf.dtype))
    if value.dtype != leaf.dtype:
        raise ValueError(f"a moment is {leaf.dtype}, which JAX holds only with jax_enable_x64: switch it on")
    return jax.device_put(value, leaf.sharding) if isinstance(leaf, jax.Array) else value


def _raise(problems: list[str]) -> None:
    if problems:
        raise ValueError(f"{len(problems)} parts of the state cannot be converted: " + "; ".join(problems))
