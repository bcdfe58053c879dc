"""Check whether a PyTorch optimizer and an optax transformation follow the same rule, i.e. take the same steps.

optax's state does not determine it: Adam, Adamax and Nesterov's Adam have the same two moments, and weight decay is
in no state at all. So both get the same gradients, starting from the given state, and their updates are compared in
float64.

The gradients are random, and small enough that gradient clipping (which in PyTorch is separate from the optimizer) is
not active. The parameters are held fixed, so that the learning rate is a factor of every step: it is separated from
the rule, reported if it differs, and never an error (PyTorch's is often set by a scheduler right before a step).
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from optax.schedules import InjectStatefulHyperparamsState

from parity.carry.arrays import first_line
from parity.carry.entries import Entry, Ledger
from parity.measure.gates import norm, relative
from parity.optimizer_state.state import SLOTS, dotted_name, momentum_factor, parameters

STEPS = 4

GATE = 1e-9
"""Maximum relF between the steps of equal rules: float64 rounding, 2e-16, amplified by subtracting parameters."""

GATE_INJECTED = 1e-4
"""The same if optax stores betas and decays in float32: 1 - 0.999 then has a relative error of 1.3e-5."""

Options = Mapping[str, Any]
Units = dict[tuple[str, int | None], np.ndarray]
"""Arrays in flax's layout, by flax's name and the layer in a stack."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The difference between the steps of both, and optax's learning rate at the next step per PyTorch group."""

    error: float
    rates: Mapping[int, float]


def compare_rules(
    optimizer: torch.optim.Optimizer,
    groups: Sequence[Options],
    torch_model: torch.nn.Module,
    tx: optax.GradientTransformation,
    opt_state: optax.OptState,
    ledger: Ledger,
    steps: int,
) -> tuple[list[str], list[str]]:
    """Return (errors, warnings) of comparing both rules from `opt_state`, PyTorch's with the options in `groups`."""
    trial = _Trial.of(optimizer, groups, torch_model, opt_state, ledger, steps)
    if trial is None:
        return [], ["optax keeps no moments: its rule was not compared with PyTorch's"]
    try:
        found = trial.compare(tx)
    except (ValueError, TypeError) as error:  # a transformation that needs more than gradients and parameters
        text = first_line(error)[:150]
        return [], [f"optax's transformation did not run by itself ({text}): its rule was not compared with PyTorch's"]
    if found.error > trial.gate:
        settings = "; ".join(dict.fromkeys(_settings(group) for group in groups))
        known = trial.known(tx)
        return [
            f"PyTorch's {type(optimizer).__name__} ({settings}) and optax's transformation are not the same rule: from "
            f"this state their steps differ by {found.error:.1e}" + (f"; optax's moves like {known}" if known else "")
        ], []
    told = [
        f"at the next step the learning rate is {float(groups[i]['lr']):.6g} in PyTorch, {rate:.6g} in optax: set them "
        "alike"
        for i, rate in found.rates.items()
        if abs(rate - float(groups[i]["lr"])) > max(1e-6, trial.gate) * abs(rate)
    ]
    return [], told if found.rates else ["optax's learning rate is zero: its rule was not compared with PyTorch's"]


def _settings(group: Options) -> str:
    names = ("betas", "momentum", "nesterov", "eps", "weight_decay", "decoupled_weight_decay")
    return ", ".join(f"{name} {group[name]}" for name in names if name in group)


@dataclasses.dataclass(frozen=True)
class _Trial:
    """The common starting state of both sides."""

    kind: type[torch.optim.Optimizer]
    groups: Sequence[Options]
    group_of: Mapping[tuple[str, int | None], int]
    entries: Sequence[Entry]
    state: Any
    params: Any
    moments: Mapping[str, Mapping[str, np.ndarray]]
    steps: int
    injected: bool

    @classmethod
    def of(
        cls,
        optimizer: torch.optim.Optimizer,
        groups: Sequence[Options],
        torch_model: torch.nn.Module,
        opt_state: optax.OptState,
        ledger: Ledger,
        steps: int,
    ) -> _Trial | None:
        with jax.enable_x64(True):
            state = jax.tree.map(_double, opt_state, is_leaf=_is_variable)
            trees = list(_moment_trees(state))
            if not trees:
                return None
            params = _parameters(trees, {entry.jax: entry.jax_shape for entry in ledger})
        positions = {id(group): i for i, group in enumerate(optimizer.param_groups)}
        trained = {id(p): positions[id(group)] for group, p in parameters(optimizer) if p.requires_grad}
        named = dict(torch_model.named_parameters(remove_duplicate=False))
        places = {(e.jax, e.index): trained.get(id(named.get(e.torch)), -1) for e in ledger}
        known = {name for name, _ in _leaves(params)}
        moments: dict[str, dict[str, np.ndarray]] = {}
        for slot, tree in trees:
            moments.setdefault(slot, {}).update({name: np.asarray(x) for name, x in _leaves(tree)})
        injected = any(isinstance(x, InjectStatefulHyperparamsState) for x in _nodes(state))
        entries = [entry for entry in ledger if entry.jax in known]
        return cls(type(optimizer), groups, places, entries, state, params, moments, steps, injected)

    @property
    def gate(self) -> float:
        return GATE_INJECTED if self.injected else GATE

    def compare(self, tx: optax.GradientTransformation) -> Comparison:
        gradients = [self._gradients(step) for step in range(STEPS)]
        return self._apart(self._torch_steps(gradients), self._optax_steps(tx, gradients))

    def _gradients(self, step: int) -> Units:
        """Return gradients that are small relative to the moments, to avoid clipping, and vary in size per step."""
        total = sum(math.prod(entry.jax_shape) for entry in self.entries) or 1
        first = self.moments.get("mu") or self.moments.get("trace") or {}
        found = {}
        for entry in self.entries:
            moment, square = (self._unit(x.get(entry.jax), entry) for x in (first, self.moments.get("nu", {})))
            found_sizes = [0.0] if moment is None or not moment.size else [norm(moment) / math.sqrt(moment.size)]
            found_sizes += [math.sqrt(abs(square.mean()))] if square is not None and square.size else []
            # Clipped gradients have second moments below the limit, and a buffer up to 1 / (1 - momentum) as large.
            size = (0.03 if "mu" in self.moments else 0.003) * max(found_sizes)
            draw = np.random.RandomState(zlib.crc32(repr((entry.jax, entry.index, step)).encode()))
            shape = entry.jax_shape if entry.index is None else entry.jax_shape[1:]
            size = (size or 1e-4 / math.sqrt(total)) * (1.0, 0.3, 2.0, 0.1)[step]
            found[entry.jax, entry.index] = size * draw.standard_normal(shape)
        return found

    @staticmethod
    def _unit(array: np.ndarray | None, entry: Entry) -> np.ndarray | None:
        return array if array is None or entry.index is None else array[entry.index]

    def _torch_steps(self, gradients: Sequence[Units]) -> list[Units]:
        """Return PyTorch's updates at a learning rate of 1, in float64, with fixed parameters."""
        start = {name: np.asarray(x) for name, x in _leaves(self.params)}
        tensors = {
            (entry.jax, entry.index): torch.nn.Parameter(torch.tensor(self._unit(start[entry.jax], entry)))
            for entry in self.entries
            if self.group_of[entry.jax, entry.index] >= 0
        }
        # Scale steps to the size of the parameters, for any optimizer: subtracting them then loses fewer digits.
        size = max((norm(g) / math.sqrt(g.size) for g in gradients[0].values() if g.size), default=1.0)
        rate = 1.0 / size if self.kind is torch.optim.SGD else 1.0
        optimizer = self._optimizer(tensors, rate)
        keep = {key: tensor.detach().clone() for key, tensor in tensors.items()}
        found = []
        for given in gradients:
            for key, tensor in tensors.items():
                tensor.grad = torch.tensor(given[key])
            optimizer.step()
            found.append({key: (keep[key] - x.detach()).numpy() / rate for key, x in tensors.items()})
            with torch.no_grad():
                for key, tensor in tensors.items():
                    tensor.copy_(keep[key])
        return found

    def _optimizer(
        self, tensors: Mapping[tuple[str, int | None], torch.nn.Parameter], rate: float
    ) -> torch.optim.Optimizer:
        options = [
            {key: value for key, value in group.items() if key not in ("params", "fused", "foreign", "capturable")}
            for group in self.groups
        ]
        members = [[x for key, x in tensors.items() if self.group_of[key] == i] for i in range(len(options))]
        used = [{**o, "params": m, "lr": rate, "foreign": False} for o, m in zip(options, members, strict=True) if m]
        optimizer = self.kind(used)  # type: ignore[call-arg]
        for entry in self.entries:
            tensor = tensors.get((entry.jax, entry.index))
            for key, slot in SLOTS[self.kind].items():
                moment = self._unit(self.moments.get(slot, {}).get(entry.jax), entry)
                if tensor is not None and moment is not None:
                    group = self.groups[self.group_of[entry.jax, entry.index]]
                    factor = momentum_factor(self.kind, group) if key == "momentum_buffer" else 1.0
                    optimizer.state[tensor][key] = torch.tensor(moment * factor)
                    if key == "exp_avg":
                        optimizer.state[tensor]["step"] = torch.tensor(float(self.steps))
        return optimizer

    def _optax_steps(self, tx: optax.GradientTransformation, gradients: Sequence[Units]) -> list[Units]:
        found = []
        with jax.enable_x64(True):
            state = self.state
            for given in gradients:
                tree = _named(self.params, lambda name, x, given=given: self._whole(name, x, given))
                updates, state = tx.update(tree, state, self.params)
                leaves = {name: -np.asarray(x, np.float64) for name, x in _leaves(updates)}
                units = {(entry.jax, entry.index): self._unit(leaves.get(entry.jax), entry) for entry in self.entries}
                found.append({key: np.zeros_like(given[key]) if x is None else x for key, x in units.items()})
        return found

    def _whole(self, name: str, like: Any, given: Units) -> jax.Array:
        """Return the gradient of a flax tensor, assembled from its layers."""
        layers = {index: x for (other, index), x in given.items() if other == name}
        if None in layers:
            return jnp.asarray(layers[None])
        found = np.zeros(like.shape)
        for index, array in layers.items():
            found[index] = array
        return jnp.asarray(found)

    def _apart(self, ours: Sequence[Units], theirs: Sequence[Units]) -> Comparison:
        """Compare the steps per group, up to one positive factor: the learning rate."""
        worst, rates = 0.0, dict[int, float]()
        for a, b in zip(ours, theirs, strict=True):
            for i in sorted(set(self.group_of.values())):
                keys = [key for key in b if self.group_of[key] == i and b[key].size]
                given = _flat([b[key] for key in keys])
                if i < 0:  # parameters that PyTorch does not train
                    worst = math.inf if given.any() else worst
                    continue
                wanted = _flat([a[key] for key in keys])
                if not given.any():
                    continue
                factor = float(np.dot(wanted, given) / max(np.dot(wanted, wanted), 1e-300))
                apart = relative(norm(given - factor * wanted), norm(given))
                worst = max(worst, apart if factor > 0 and math.isfinite(apart) else math.inf)
                rates.setdefault(i, factor)
        return Comparison(worst, rates)

    def known(self, tx: optax.GradientTransformation) -> str | None:
        """Return the name of the rule that optax's transformation follows, if it is a commonly confused one."""
        gradients = [self._gradients(step) for step in range(STEPS)]
        theirs = self._optax_steps(tx, gradients)
        for name, candidate in self._candidates():
            start = candidate.init(self.params)
            with jax.enable_x64(True):
                state = self._filled(jax.tree.map(_double, start))
            trial = dataclasses.replace(self, state=state)
            try:
                found = trial._optax_steps(candidate, gradients)
            except (ValueError, TypeError):
                continue
            if trial._apart(found, theirs).error <= self.gate:
                return name
        return None

    def _filled(self, state: Any) -> Any:
        """Return a fresh state with these moments and this step count."""

        def node(x: Any) -> Any:
            count = jnp.asarray(self.steps, jnp.int32)
            match x:
                case optax.ScaleByAdamState():
                    return optax.ScaleByAdamState(count, self._moment("mu", x.mu), self._moment("nu", x.nu))
                case optax.TraceState():
                    return optax.TraceState(self._moment("trace", x.trace))
            return x

        return jax.tree.map(node, state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState | optax.TraceState))

    def _moment(self, slot: str, tree: Any) -> Any:
        known = self.moments.get(slot, {})
        return _named(tree, lambda name, x: jnp.asarray(known[name]) if name in known else x)

    def _candidates(self) -> Iterator[tuple[str, optax.GradientTransformation]]:
        group = next((g for g in self.groups if g.get("weight_decay")), self.groups[0])
        own, mask = float(group.get("weight_decay", 0.0)), self._mask()
        rules: list[tuple[str, optax.GradientTransformation]]
        if self.kind is torch.optim.SGD:
            momenta = dict.fromkeys((float(group["momentum"]), 0.9, 0.95, 0.99))
            rules = [
                (f"momentum {m:g}" + (" with Nesterov" if nesterov else ""), optax.trace(m, nesterov))
                for m in momenta
                for nesterov in (False, True)
            ]
        else:
            (b1, b2), eps = group["betas"], group["eps"]
            rules = [
                ("Adam", optax.scale_by_adam(b1, b2, eps)),
                ("Nesterov's Adam (nadam)", optax.scale_by_adam(b1, b2, eps, nesterov=True)),
                ("Adamax", optax.scale_by_adamax(b1, b2, eps)),
                ("Adam with eps under the root", optax.scale_by_adam(b1, b2, 0.0, eps)),
                *((f"Adam with b2 {x:g}", optax.scale_by_adam(b1, x, eps)) for x in (0.9, 0.95, 0.98, 0.99, 0.999)),
                *((f"Adam with b1 {x:g}", optax.scale_by_adam(x, b2, eps)) for x in (0.5, 0.8, 0.9, 0.95)),
                *((f"Adam with eps {x:g}", optax.scale_by_adam(b1, b2, x)) for x in (1e-6, 1e-7, 1e-8, 1e-10)),
            ]
        down = optax.scale(-1.0)
        for i, (text, rule) in enumerate(rules):
            if not own or i == 0:
                yield f"{text} without weight decay", optax.chain(rule, down)
            for decay in dict.fromkeys((own, 1e-4, 1e-2, 5e-4, 0.05, 0.1) if i == 0 else (own,)):
                decays = {"": optax.add_decayed_weights(decay, mask), " of all": optax.add_decayed_weights(decay)}
                for whose, added in decays.items() if decay else ():
                    said = f"{text} with weight decay {decay:g}{whose}"
                    yield f"{said} beside the gradient (as AdamW)", optax.chain(rule, added, down)
                    yield f"{said} in the gradient (L2)", optax.chain(added, rule, down)

    def _mask(self) -> Any:
        """Return a mask of the flax tensors that PyTorch decays."""
        decaying = [i for i, group in enumerate(self.groups) if group.get("weight_decay")] or range(len(self.groups))
        decays = {name for (name, _), i in self.group_of.items() if i in decaying}
        return _named(self.params, lambda name, x: name in decays)


def _flat(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([x.ravel() for x in arrays]) if arrays else np.zeros(0)


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)


def _double(x: Any) -> Any:
    """Convert a leaf of a state to a plain array; floating ones to float64."""
    array = np.asarray(x.get_value() if _is_variable(x) else x)
    return jnp.asarray(array.astype(np.float64) if jnp.issubdtype(array.dtype, jnp.floating) else array)


def _is_known(x: Any) -> bool:
    return isinstance(x, optax.ScaleByAdamState | optax.TraceState | InjectStatefulHyperparamsState)


def _nodes(state: Any) -> Iterator[Any]:
    """Yield the states of known types, including those inside injected hyperparameters."""
    for x in jax.tree.leaves(state, is_leaf=_is_known):
        if _is_known(x):
            yield x
        if isinstance(x, InjectStatefulHyperparamsState):
            yield from _nodes(x.inner_state)


def _moment_trees(state: Any) -> Iterator[tuple[str, Any]]:
    for x in _nodes(state):
        if isinstance(x, optax.ScaleByAdamState):
            yield "mu", x.mu
            yield "nu", x.nu
        elif isinstance(x, optax.TraceState):
            yield "trace", x.trace


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    return [(dotted_name(path), x) for path, x in jax.tree_util.tree_leaves_with_path(tree)]


def _named(tree: Any, change: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, x: change(dotted_name(path), x), tree)


def _parameters(trees: Sequence[tuple[str, Any]], shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """Draw parameters with the structure of the moments; several masked trees are merged."""

    whole = _merged([tree for _, tree in trees])

    def drawn(path: tuple[Any, ...], x: Any) -> Any:
        name = dotted_name(path)
        shape = shapes.get(name) if isinstance(x, optax.MaskedNode) else x.shape
        draw = np.random.RandomState(zlib.crc32(name.encode()))
        return x if shape is None else jnp.asarray(draw.standard_normal(shape))

    return jax.tree_util.tree_map_with_path(drawn, whole, is_leaf=lambda x: isinstance(x, optax.MaskedNode))


def _merged(trees: Sequence[Any]) -> Any:
    """Merge trees with the same structure, each of which may have masks in place of leaves or branches."""
    solid = [tree for tree in trees if not isinstance(tree, optax.MaskedNode)]
    if not solid:
        return trees[0]
    split = [_children(tree) for tree in solid]
    children, structure = split[0]
    if len(children) == 1 and children[0] is solid[0]:
        return solid[0]
    return jax.tree.unflatten(structure, [_merged(found) for found in zip(*(x for x, _ in split), strict=True)])


def _children(tree: Any) -> tuple[list[Any], Any]:
    """Return the direct children of a tree, and the structure to rebuild it; a leaf is its own child."""
    return jax.tree.flatten(tree, is_leaf=lambda x: x is not tree)
