"""What the optimisers of both frameworks remember: `torch.optim` by parameter, optax anywhere in its tree of states."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import optax
import torch
from optax.schedules import InjectStatefulHyperparamsState

from parity.carry.convert import to_numpy

SLOTS: Mapping[type[torch.optim.Optimizer], Mapping[str, str]] = {
    torch.optim.Adam: {"exp_avg": "mu", "exp_avg_sq": "nu"},
    torch.optim.AdamW: {"exp_avg": "mu", "exp_avg_sq": "nu"},
    torch.optim.SGD: {"momentum_buffer": "trace"},
}
"""What each optimiser remembers of a parameter -> optax's name for it."""

_KNOWN = (
    optax.ScaleByAdamState,
    optax.TraceState,
    optax.ScaleByScheduleState,
    InjectStatefulHyperparamsState,
)

Visit = Callable[[str, str, Any], Any]
"""(slot, name, leaf) -> what takes the leaf's place."""

Moments = dict[str, dict[str, np.ndarray]]
"""optax's slot -> dotted name (PyTorch's or JAX's) -> moment, in that framework's layout."""


@dataclasses.dataclass
class TorchMemory:
    """All that a PyTorch optimiser remembers; `steps` by parameter, if it counts them."""

    moments: Moments
    steps: dict[str, int]
    problems: list[str]


@dataclasses.dataclass
class OptaxMemory:
    """The leaves of an optax state by what they are; hyperparameters without those that a schedule sets anew."""

    moments: dict[str, dict[str, Any]]
    counts: list[Any]
    hyperparams: list[tuple[str, Any]]
    problems: list[str]


def parameter_names(model: torch.nn.Module, known: Collection[str]) -> dict[int, str]:
    """id of every parameter -> its name; of several (tied) the one that is `known`, a ledger's."""
    found: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = found.setdefault(id(parameter), name)
        if name in known and first not in known:
            found[id(parameter)] = name
    return found


def read_torch(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> TorchMemory:
    """The memory of `optimizer`: zeros for parameters that have none yet, frozen ones left out; see `parameter_names`.

    Raises:
        ValueError: the optimiser's type is not one of `SLOTS`.
    """
    if type(optimizer) not in SLOTS:
        known = ", ".join(kind.__name__ for kind in SLOTS)
        raise ValueError(f"the state of {type(optimizer).__name__} cannot be carried, that of {known} can")
    slots = SLOTS[type(optimizer)]
    memory = TorchMemory({slot: {} for slot in slots.values()}, {}, [])
    for group, parameter in parameters(optimizer):
        state = optimizer.state.get(parameter, {})
        if not parameter.requires_grad and not state:
            continue
        name = names.get(id(parameter))
        if name is None:
            memory.problems.append(f"a parameter {list(parameter.shape)} of PyTorch's optimiser is not in the model")
            continue
        unknown = [key for key, value in state.items() if value is not None and key not in ("step", *slots)]
        memory.problems += [f"{key} of {name} has no partner in optax" for key in unknown]
        memory.problems += [f"{option} of {name}'s group has no partner in optax" for option in _foreign(group)]
        if "momentum_buffer" in slots and not group["momentum"]:
            continue
        for key, slot in slots.items():
            value = state.get(key)
            memory.moments[slot][name] = to_numpy(torch.zeros_like(parameter) if value is None else value)
        if "exp_avg" in slots:
            memory.steps[name] = int(state.get("step", 0))
    memory.moments = {slot: moments for slot, moments in memory.moments.items() if moments}
    return memory


def read_optax(opt_state: optax.OptState) -> OptaxMemory:
    """The leaves of `opt_state` by what they are; those that PyTorch cannot hold are problems."""
    memory = OptaxMemory({}, [], [], [])

    def read(slot: str, name: str, leaf: Any) -> Any:
        if slot == "count":
            memory.counts.append(leaf)
        elif slot == "hyperparam":
            memory.hyperparams.append((name, leaf))
        elif slot == "unknown":
            memory.problems.append(f"{name} of optax's state has no partner in PyTorch")
        elif name in memory.moments.setdefault(slot, {}):
            memory.problems.append(f"optax's state holds {slot} of {name} twice")
        else:
            memory.moments[slot][name] = leaf
        return leaf

    walk(opt_state, read)
    return memory


def walk(state: Any, visit: Visit) -> Any:
    """`state` with every leaf replaced by what `visit` says; "unknown" ones are named by their place."""

    def node(path: tuple[Any, ...], x: Any) -> Any:
        def moments(slot: str, tree: Any) -> Any:
            return named(tree, lambda name, leaf: visit(slot, name, leaf))

        match x:
            case optax.ScaleByAdamState():
                return optax.ScaleByAdamState(moments("count", x.count), moments("mu", x.mu), moments("nu", x.nu))
            case optax.TraceState():
                return optax.TraceState(moments("trace", x.trace))
            case optax.ScaleByScheduleState():
                return x._replace(count=moments("count", x.count))
            case InjectStatefulHyperparamsState():

                def position(name: str, leaf: Any) -> Any:
                    return visit("count" if name.endswith(".count") else "unknown", name, leaf)

                # Those with a schedule are computed at every step from its count.
                fixed = {key: value for key, value in x.hyperparams.items() if key not in x.hyperparams_states}
                return x._replace(
                    count=moments("count", x.count),
                    hyperparams={**x.hyperparams, **moments("hyperparam", fixed)},
                    hyperparams_states=named(x.hyperparams_states, position),
                    inner_state=walk(x.inner_state, visit),
                )
        return visit("unknown", jax.tree_util.keystr(path), x)

    return jax.tree_util.tree_map_with_path(node, state, is_leaf=lambda x: isinstance(x, _KNOWN))


def named(tree: Any, change: Callable[[str, Any], Any]) -> Any:
    """`tree` with every leaf changed, by its dotted name: flax's variables are leaves, flat and nested names alike."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: change(dotted_name(path), leaf), tree)


def dotted_name(path: tuple[Any, ...]) -> str:
    """The dotted name of a leaf."""
    if path and path[-1] == jax.tree_util.GetAttrKey("value"):  # what a flax variable holds
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator=".")


def parameters(optimizer: torch.optim.Optimizer) -> Iterator[tuple[dict[str, Any], torch.Tensor]]:
    """Every parameter with its group."""
    return ((group, parameter) for group in optimizer.param_groups for parameter in group["params"])


def _foreign(group: Mapping[str, Any]) -> list[str]:
    """Options of a parameter group that optax's states cannot follow."""
    options = [option for option in ("amsgrad", "maximize") if group.get(option)]
    return options + (["dampening"] if group.get("momentum") and group["dampening"] != 0 else [])


def _group_values(group: Mapping[str, Any]) -> dict[str, float]:
    """optax's names of the hyperparameters of a group."""
    betas = dict(zip(("b1", "b2"), group.get("betas", ()), strict=False))
    same = {name: group[name] for name in ("eps", "weight_decay", "momentum") if name in group}
    return {"learning_rate": float(group["lr"]), "eps_root": 0.0, **betas, **same}


def torch_hyperparams(optimizer: torch.optim.Optimizer, wanted: Any) -> tuple[dict[str, float], list[str]]:
    """The values of the hyperparameters `wanted`, and why some have none; groups without decay may stand aside."""
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
    """Writes optax's values into every group of a PyTorch optimiser; those without decay keep to it."""
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
    """Replaces the state of `optimizer`; PyTorch itself puts every tensor where it belongs."""
    found = {i: state.get(names[id(p)]) for i, (_, p) in enumerate(parameters(optimizer)) if id(p) in names}
    kept = {i: value for i, value in found.items() if value is not None}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": kept})
