"""Read and write optimizer state: `torch.optim` by parameter, optax anywhere in its tree of states."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
import torch
from optax.contrib import MuonState
from optax.schedules import InjectStatefulHyperparamsState
from optax.transforms import PartitionState

from parity.carry.convert import to_numpy

SLOTS: Mapping[type[torch.optim.Optimizer], Mapping[str, str]] = {
    torch.optim.Adam: {"exp_avg": "mu", "exp_avg_sq": "nu"},
    torch.optim.AdamW: {"exp_avg": "mu", "exp_avg_sq": "nu"},
    torch.optim.SGD: {"momentum_buffer": "trace"},
    torch.optim.RMSprop: {"square_avg": "nu", "grad_avg": "mu", "momentum_buffer": "trace"},
    torch.optim.Adagrad: {"sum": "sum_of_squares"},
    torch.optim.Muon: {"momentum_buffer": "trace"},
}
"""Per optimizer, maps PyTorch's keys of a parameter's state to optax's names."""

MOMENTS: Mapping[type, tuple[str, ...]] = {
    optax.ScaleByAdamState: ("mu", "nu"),
    optax.TraceState: ("trace",),
    optax.ScaleByRmsState: ("nu",),
    optax.ScaleByRStdDevState: ("mu", "nu"),
    optax.ScaleByRssState: ("sum_of_squares",),
}
"""Per state of optax, its trees of moments."""

_KNOWN = (*MOMENTS, optax.ScaleByScheduleState, InjectStatefulHyperparamsState)

Visit = Callable[[str, str, Any], Any]
"""Function of (slot, name, leaf) that returns the leaf's replacement."""

Moments = dict[str, dict[str, np.ndarray]]
"""Maps optax's slot and the dotted name (PyTorch's or JAX's) to the moment, in that framework's layout."""


@dataclasses.dataclass
class TorchState:
    """The state of a PyTorch optimizer; `steps` per parameter, if it counts them."""

    moments: Moments
    steps: dict[str, int]
    problems: list[str]
    factors: dict[str, float] = dataclasses.field(default_factory=dict)
    """Per parameter, PyTorch's momentum divided by optax's, if it is not 1."""


@dataclasses.dataclass
class OptaxState:
    """The leaves of an optax state by kind; hyperparameters that follow a schedule are excluded."""

    moments: dict[str, dict[str, Any]]
    counts: list[Any]
    hyperparams: list[tuple[str, Any]]
    problems: list[str]


def parameter_names(model: torch.nn.Module, known: Collection[str]) -> dict[int, str]:
    """Map the id of every parameter to its name; for tied parameters to the one in `known` (a ledger's names)."""
    found: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = found.setdefault(id(parameter), name)
        if name in known and first not in known:
            found[id(parameter)] = name
    return found


def read_torch(optimizer: torch.optim.Optimizer, names: Mapping[int, str], *, fresh: bool = False) -> TorchState:
    """Read the state of `optimizer`: zeros for parameters without state; frozen parameters are skipped.

    `names` are those of `parameter_names`. `fresh`: the state is about to be replaced, so it may be one before the
    first step.

    Raises:
        ValueError: The type of the optimizer is not in `SLOTS`.
    """
    if type(optimizer) not in SLOTS:
        known = ", ".join(kind.__name__ for kind in SLOTS)
        raise ValueError(f"the state of {type(optimizer).__name__} cannot be converted, that of {known} can")
    slots = SLOTS[type(optimizer)]
    result = TorchState({slot: {} for slot in slots.values()}, {}, [])
    for group, parameter in parameters(optimizer):
        state = optimizer.state.get(parameter, {})
        if not parameter.requires_grad and not state:
            continue
        name = names.get(id(parameter))
        if name is None:
            result.problems.append(f"a parameter {list(parameter.shape)} of PyTorch's optimizer is not in the model")
            continue
        unknown = [key for key, value in state.items() if value is not None and key not in ("step", *slots)]
        result.problems += [f"{key} of {name} has no partner in optax" for key in unknown]
        result.problems += [f"{option} of {name}'s group has no partner in optax" for option in _foreign(group)]
        factor = momentum_factor(type(optimizer), group)
        if type(optimizer) is torch.optim.SGD and factor != 1 and state.get("momentum_buffer") is None and not fresh:
            result.problems.append(
                f"{name} has no momentum yet, and PyTorch does not dampen the first gradient: take one step first"
            )
        for key, slot in slots.items():
            if not _used(key, group):
                continue
            value = state.get(key)
            start = torch.full_like(parameter, group.get("initial_accumulator_value", 0.0)) if value is None else value
            result.moments[slot][name] = to_numpy(start)
            if key == "momentum_buffer" and factor not in (0, 1):
                result.factors[name] = factor
                result.moments[slot][name] = result.moments[slot][name] / factor
        if type(optimizer) not in (torch.optim.SGD, torch.optim.Muon):
            result.steps[name] = int(state.get("step", 0))
    result.moments = {slot: moments for slot, moments in result.moments.items() if moments}
    return result


def read_optax(opt_state: optax.OptState, *, orthogonal: bool = False) -> OptaxState:
    """Read the leaves of `opt_state` by kind; those that PyTorch cannot represent are added to the problems."""
    result = OptaxState({}, [], [], [])

    def read(slot: str, name: str, leaf: Any) -> Any:
        if slot == "count":
            result.counts.append(leaf)
        elif slot == "hyperparam":
            result.hyperparams.append((name, leaf))
        elif slot == "unknown":
            result.problems.append(f"{name} of optax's state has no partner in PyTorch")
        elif name in result.moments.setdefault(slot, {}):
            result.problems.append(f"optax's state holds {slot} of {name} twice")
        else:
            result.moments[slot][name] = leaf
        return leaf

    walk(opt_state, read, orthogonal=orthogonal)
    return result


def walk(state: Any, visit: Visit, *, orthogonal: bool = False) -> Any:
    """Replace every leaf of `state` by the result of `visit`; "unknown" leaves are named by their key path.

    `orthogonal`: leave a `MuonState` as it is, rather than unknown.
    """

    def node(path: tuple[Any, ...], x: Any) -> Any:
        def moments(slot: str, tree: Any) -> Any:
            return named(tree, lambda name, leaf: visit(slot, name, leaf))

        if type(x) in MOMENTS:
            counted = {"count": moments("count", x.count)} if "count" in x._fields else {}
            return x._replace(**counted, **{slot: moments(slot, getattr(x, slot)) for slot in MOMENTS[type(x)]})
        match x:
            case MuonState():  # without momentum of its own (see `parity.optimizer_state.rule`)
                return x if orthogonal else visit("unknown", jax.tree_util.keystr(path), x)
            case optax.ScaleByScheduleState():
                return x._replace(count=moments("count", x.count))
            case InjectStatefulHyperparamsState():

                def position(name: str, leaf: Any) -> Any:
                    return visit("count" if name.endswith(".count") else "unknown", name, leaf)

                # Hyperparameters with a schedule are recomputed from its count at every step.
                fixed = {key: value for key, value in x.hyperparams.items() if key not in x.hyperparams_states}
                return x._replace(
                    count=moments("count", x.count),
                    hyperparams={**x.hyperparams, **moments("hyperparam", fixed)},
                    hyperparams_states=named(x.hyperparams_states, position),
                    inner_state=walk(x.inner_state, visit, orthogonal=orthogonal),
                )
        return visit("unknown", jax.tree_util.keystr(path), x)

    return jax.tree_util.tree_map_with_path(node, state, is_leaf=lambda x: isinstance(x, (*_KNOWN, MuonState)))


def parts(state: Any) -> list[Any]:
    """Return the states of a partition's transformations, or the whole state if it is not partitioned."""
    return list(state.inner_states.values()) if isinstance(state, PartitionState) else [state]


def in_parts(state: Any, found: Sequence[Any]) -> Any:
    """Return `state` with other parts; the inverse of `parts`."""
    if not isinstance(state, PartitionState):
        return found[0]
    return state._replace(inner_states=dict(zip(state.inner_states, found, strict=True)))


def named(tree: Any, change: Callable[[str, Any], Any]) -> Any:
    """Apply `change(dotted name, leaf)` to every leaf; flax variables count as leaves, in flat and nested trees."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: change(dotted_name(path), leaf), tree)


def dotted_name(path: tuple[Any, ...]) -> str:
    """Return the dotted name of a leaf."""
    if path and path[-1] == jax.tree_util.GetAttrKey("value"):  # the value inside a flax variable
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator=".")


def parameters(optimizer: torch.optim.Optimizer) -> Iterator[tuple[dict[str, Any], torch.Tensor]]:
    """Yield every parameter with its group."""
    return ((group, parameter) for group in optimizer.param_groups for parameter in group["params"])


def kind_of(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """Return the type whose arithmetic it has: AdamW is Adam with another default of `decoupled_weight_decay`."""
    return torch.optim.Adam if kind is torch.optim.AdamW else kind


def momentum_factor(kind: type[torch.optim.Optimizer], group: Mapping[str, Any]) -> float:
    """Return PyTorch's momentum divided by optax's `trace`, into which every gradient enters whole."""
    if kind is torch.optim.Muon:
        return 1 - float(group["momentum"])
    return 1 - float(group["dampening"]) if kind is torch.optim.SGD and group["momentum"] else 1.0


def _used(key: str, group: Mapping[str, Any]) -> bool:
    """Return whether an optimizer with these options keeps this tensor per parameter."""
    if key == "momentum_buffer":
        return bool(group["momentum"])
    return bool(group["centered"]) if key == "grad_avg" else True


def _foreign(group: Mapping[str, Any]) -> list[str]:
    """Return the options of a parameter group that optax's states do not support."""
    return ["amsgrad"] if group.get("amsgrad") else []


def _group_values(group: Mapping[str, Any]) -> dict[str, float]:
    """Return the hyperparameters of a group by optax's names."""
    betas = dict(zip(("b1", "b2"), group.get("betas", ()), strict=False))
    same = {name: group[name] for name in ("eps", "weight_decay", "momentum") if name in group}
    return {"learning_rate": float(group["lr"]), "eps_root": 0.0, **betas, **same}


def torch_hyperparams(optimizer: torch.optim.Optimizer, wanted: Any) -> tuple[dict[str, float], list[str]]:
    """Return the values of the hyperparameters `wanted`, and the problems; groups may have no weight decay."""
    values, problems = {}, []
    for name in sorted(wanted):
        found = {_group_values(group).get(name) for group in optimizer.param_groups}
        if name == "weight_decay" and len(found) > 1:
            found.discard(0)
        value = found.pop()
        if found or value is None:
            shown = "differs between PyTorch's groups" if found else "has no partner in PyTorch"
            problems.append(f"the injected hyperparameter {name} {shown}")
        else:
            values[name] = value
    return values, problems


def set_hyperparams(groups: Iterable[dict[str, Any]], values: Mapping[str, float]) -> None:
    """Set optax's values in every group of a PyTorch optimizer; groups without weight decay stay without it."""
    for group in groups:
        for name, key in (("learning_rate", "lr"), ("eps", "eps"), ("momentum", "momentum")):
            if name in values:
                group[key] = values[name]
        if group.get("weight_decay") and "weight_decay" in values:
            group["weight_decay"] = values["weight_decay"]
        if "betas" in group:
            b1, b2 = group["betas"]
            group["betas"] = (values.get("b1", b1), values.get("b2", b2))


def load_state(optimizer: torch.optim.Optimizer, names: Mapping[int, str], state: Mapping[str, dict[str, Any]]) -> None:
    """Replace the state of `optimizer`; PyTorch moves every tensor to the right device and dtype."""
    found = {i: state.get(names[id(p)]) for i, (_, p) in enumerate(parameters(optimizer)) if id(p) in names}
    kept = {i: value for i, value in found.items() if value is not None}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": kept})
