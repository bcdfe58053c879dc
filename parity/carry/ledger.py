"""Pairing of the tensors of PyTorch and Flax NNX, each exactly once, by name, layer type and shape."""

from __future__ import annotations

import dataclasses
import glob
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from flax import nnx

from parity.carry.arrays import dtype_name
from parity.carry.entries import Entry, Ledger
from parity.carry.jax_names import all_names, every_path, expected, join, recurrent
from parity.carry.orientation import Choice, Matrix, choose, is_linear, oriented
from parity.carry.program import Adapter, Program
from parity.carry.rules import ALONE, TORCH_ONLY, Box, LeafRule, Rules, box_shape, matches, overlap
from parity.carry.wrappers import StateDict, hints, listing, plain_names, prefix_of, state_of, unwrapped


def jax_variables(model: nnx.Module) -> dict[str, nnx.Variable]:
    """Map dotted paths to variables, excluding random-number state.

    Raises:
        ValueError: Two paths have the same dotted name (`a.b` in a dict, and `b` in its `a`).
    """
    found: dict[str, nnx.Variable] = {}
    for path, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Variable) and not isinstance(node, nnx.RngState):
            name = ".".join(map(str, path))
            if name in found:
                raise ValueError(f"two tensors of JAX are called {name}: rename one, without dots in its name")
            found[name] = node
    return found


class UnpairedTensorsError(ValueError):
    """The tensors do not correspond by name: `problems` says why, `alone` are those of PyTorch without a partner."""

    def __init__(self, message: str, problems: Sequence[str], alone: Sequence[str]) -> None:
        super().__init__(message)
        self.problems, self.alone = tuple(problems), tuple(alone)


def build_ledger(
    source: torch.nn.Module | StateDict, jax_model: nnx.Module | Adapter, rules: Rules | None = None
) -> Ledger:
    """Pair the tensors of both sides by name, layer type and shape, without changing them.

    Further names of a tensor need no partner, on either side. The name prefixes added by DataParallel,
    DistributedDataParallel and torch.compile are ignored.

    Raises:
        UnpairedTensorsError: (a ValueError) Some tensors have no partner, claim the same partner, or have shapes that
            do not fit; all of them are listed at once.
    """
    return ledger_of(source, JaxTensors.of(jax_model.as_nnx() if isinstance(jax_model, Adapter) else jax_model), rules)


def ledger_of(source: torch.nn.Module | StateDict, jax_tensors: JaxTensors, rules: Rules | None = None) -> Ledger:
    """As `build_ledger`, for many rules of one pair of models."""
    model = unwrapped(source) if isinstance(source, torch.nn.Module) else None
    return _Pairer(state_of(source), model, jax_tensors, rules or Rules()).ledger()


@dataclasses.dataclass(frozen=True)
class JaxTensors:
    """What the pairing reads from a JAX model.

    Attributes:
        variables: As `jax_variables`.
        names: Maps every name of every variable to its name in `variables`.
        modules: Every module by each of its paths.
        layers: The type of every module by its first path.
        alone: Patterns of the tensors that need no partner.
    """

    variables: Mapping[str, nnx.Variable]
    names: Mapping[str, str]
    modules: Mapping[str, nnx.Module]
    layers: Mapping[str, str]
    alone: Sequence[str]

    @classmethod
    def of(cls, model: nnx.Module) -> JaxTensors:
        variables = jax_variables(model)
        nodes = list(every_path(model))
        return cls(
            variables,
            all_names(nodes, variables),
            {path: node for path, node in nodes if isinstance(node, nnx.Module)},
            {".".join(map(str, path)): type(module).__name__ for path, module in nnx.iter_modules(model)},
            tuple(map(glob.escape, model.table.alone)) if isinstance(model, Program) else ALONE,
        )


class _Pairer:
    """State of the pairing in progress: the entries and the problems so far."""

    def __init__(
        self, state: StateDict, torch_model: torch.nn.Module | None, jax_tensors: JaxTensors, rules: Rules
    ) -> None:
        self.state, self.rules = state, rules
        self.variables, self.layers = jax_tensors.variables, jax_tensors.layers
        self.prefix = prefix_of(state, jax_tensors.names)
        held = set(jax_tensors.names)
        self.plain = {
            name: name if name.removeprefix(self.prefix) in held else plain
            for name, plain in plain_names(state).items()
        }
        # PyTorch's second singular vector follows from the first one: most libraries do not hold it.
        self.derived = {
            name
            for name, plain in self.plain.items()
            if plain.endswith("_v") and f"{plain[:-1]}u" in self.plain.values()
        }
        self.wanted = expected(jax_tensors.modules, jax_tensors.names, rules)
        in_layers, said = recurrent(self.wanted, map(self._place_in_jax, state))
        self.wanted |= in_layers
        self.free = (*rules.jax_only, *jax_tensors.alone)
        self.told = {name: given for name in state if (given := self._told(name))}
        modules = {} if torch_model is None else dict(torch_model.named_modules(remove_duplicate=False))
        self.partners, decided, notes = self._chosen(modules)
        self.transposed, self.notes = oriented(self._matrices(modules, decided))
        self.notes += [*notes, *said]
        self.places = self._first_names()
        self.entries: list[Entry] = []
        self.torch_only: list[str] = []
        self.tied: list[str] = []
        self.alone: list[str] = []
        self.taken: dict[str, list[tuple[Box, str]]] = {}
        self.problems = [
            f"Rules(tensors=...): JAX has no tensor {rule.jax}"
            for rules_told in self.told.values()
            for rule in rules_told
            if rule.jax not in self.variables
        ]
        self.problems += [
            f"{name} of JAX holds a {type(variable.get_value()).__name__}, not an array"
            for name, variable in self.variables.items()
            if _shape(variable) is None and not matches(name, self.free)
        ]

    def _index(self, name: str) -> int | None:
        return self.rules.stack_index(name.removeprefix(self.prefix).rpartition(".")[0])[1]

    def _told(self, name: str) -> list[LeafRule]:
        """Return the rules in `Rules.tensors` for one PyTorch tensor, by its own name or by its name in a stack."""
        own = name.removeprefix(self.prefix)
        path, _, leaf = own.rpartition(".")
        stacked = join(self.rules.stack_index(path)[0], leaf)
        return self.rules.tensor_rules(own) or (self.rules.tensor_rules(stacked) if stacked != own else [])

    def _chosen(
        self, modules: Mapping[str, torch.nn.Module]
    ) -> tuple[dict[str, list[tuple[str, LeafRule]]], set[str], list[str]]:
        """Return the partners of every PyTorch tensor, each with one rule: see `choose`.

        Those of `Rules.tensors` belong to nobody else. Also return the tensors whose matrix layout was decided so, and
        notes on those where it was assumed.
        """
        choices = []
        told = {rule.jax for rules in self.told.values() for rule in rules}
        for name, tensor in self.state.items():
            if name in self.told:
                continue
            layer = self._layer(name, modules)
            for jax_name, rules in self.wanted.get(self._place_in_jax(name), {}).items():
                if jax_name in told:
                    continue
                jax_shape = _shape(self.variables[jax_name])
                own = jax_shape if jax_shape is None or self._index(name) is None else jax_shape[1:]
                choices.append(Choice(name, jax_name, tuple(rules), layer, _shape(tensor), own))
        found, decided, notes = choose(choices)
        partners = {
            name: [(rule.jax, rule) for rule in self.told.get(name, []) if rule.jax in self.variables]
            for name in self.state
        }
        for (name, jax_name), rule in found.items():
            partners[name].append((jax_name, rule))
        return partners, decided, notes

    def _place_in_jax(self, name: str) -> str:
        """Convert a PyTorch tensor name to JAX's module path."""
        path, _, leaf = self.plain[name].removeprefix(self.prefix).rpartition(".")
        return join(self.rules.jax_path(self.rules.stack_index(path)[0]), leaf)

    def _layer(self, name: str, modules: Mapping[str, torch.nn.Module]) -> torch.nn.Module | None:
        """Return the layer of PyTorch that a tensor belongs to, if known."""
        path = self.plain[name].rpartition(".")[0]
        return modules.get(path, modules.get(path.removeprefix(self.prefix)))

    def _matrices(self, modules: Mapping[str, torch.nn.Module], decided: Collection[str]) -> Iterator[Matrix]:
        """Yield the matrices of linear layers whose layout in JAX is known: the built-in rules apply to them."""
        for name, partners in self.partners.items():
            shape = _shape(self.state[name])
            for jax_name, rule in partners if shape is not None and name not in {*decided, *self.told} else ():
                jax_shape = _shape(self.variables[jax_name])
                if jax_shape is not None and is_linear(rule) and not self._is_told(jax_name):
                    own = jax_shape if self._index(name) is None else jax_shape[1:]
                    own = own if rule.axes == (1, 0) else own[::-1]
                    yield Matrix(name, self._layer(name, modules), shape or (), own)

    def _is_told(self, jax_name: str) -> bool:
        """Whether user-defined rules exist for the layer of this tensor."""
        layer = self.layers.get(jax_name.rpartition(".")[0])
        return any(layer == told.__name__ for told in self.rules.leaves)

    def ledger(self) -> Ledger:
        for name in self.state:
            self._pair(name)
        jax_only = self._rest_of_jax()
        if not self.entries and not self.problems:
            self.problems.append("there is no tensor on either side")
        if self.problems:
            raise self._unpaired([name for name in jax_only if not matches(name, self.free)])
        if self.prefix:
            self.notes.append(f"{self.prefix} before every name of PyTorch was left out")
        found = (self.entries, self.torch_only, jax_only, self.tied, self.notes)
        return Ledger(*(tuple(names) for names in found))  # type: ignore[arg-type]

    def _unpaired(self, theirs: Sequence[str]) -> UnpairedTensorsError:
        """Return the error that lists all problems; `theirs` are the tensors of JAX without a partner."""
        shapes = [
            {name: shape for name in names if (shape := _shape(tensors[name])) is not None}
            for names, tensors in ((self.alone, self.state), (theirs, self.variables))
        ]
        lines, rename = listing(self.problems, *shapes)
        advice = hints(self.alone, theirs)
        if rename is not None and not any("Rules(" in hint for hint in advice):
            advice.append(f"if the likely partners are right, write {rename}")
        if self.alone and theirs:
            advice.append("parity.suggest_rules(torch_model, jax_model, inputs) proposes the rules")
        text = f"{len(self.problems)} tensors cannot be carried over:"
        text += " " + lines[0] if len(lines) == 1 else "\n  " + ";\n  ".join(lines)
        text += "".join(f"\n(hint: {hint})" for hint in advice)
        known = {*(entry.torch for entry in self.entries), *self.torch_only, *self.tied}
        return UnpairedTensorsError(text, self.problems, [name for name in self.state if name not in known])

    def _pair(self, name: str) -> None:
        tensor, partners, index = self.state[name], self.partners[name], self._index(name)
        shape = _shape(tensor)
        if not partners and (name in self.derived or matches(name, (*TORCH_ONLY, *self.rules.torch_only))):
            self.torch_only.append(name)
        elif _is_lazy(tensor):
            self.problems.append(f"{name} of PyTorch is not initialised (a lazy module): run the model once first")
            partners = []
        elif shape is None:
            self.problems.append(f"{name} of PyTorch is a {type(tensor).__name__}, not a tensor")
        elif self._is_second_name(name):
            return
        elif not partners:
            self.problems.append(f"{name} {list(shape)} of PyTorch has no partner in JAX")
            self.alone.append(name)
        else:
            self.problems += _unlike_parts(name, shape, partners)
        for jax_name, rule in partners:
            self._claim(name, jax_name, rule, index)

    def _is_second_name(self, name: str) -> bool:
        """Whether the tensor is already paired under another name, and JAX has no such second tensor or ties it too.

        If so, the name is recorded in `tied` and `notes`.
        """
        first = self.places.get(identity(self.state[name]), name)
        if first == name:
            return False
        if self.partners[name]:
            same = [[jax_name for jax_name, _ in self.partners[x]] for x in (first, name)]
            # Different partners: JAX has two tensors. Same place: a rule maps both names to one.
            if same[0] != same[1] or self._place_in_jax(first) == self._place_in_jax(name):
                return False
        self.tied.append(name)
        self.notes.append(f"{name} is {first} in PyTorch (tied): carried once")
        return True

    def _first_names(self) -> dict[tuple[Any, ...], str]:
        """Map each PyTorch tensor with a partner to its name; of several names, to the one that JAX stores it under."""
        found: dict[tuple[Any, ...], str] = {}
        for name, partners in self.partners.items():
            path = self._place_in_jax(name).rpartition(".")[0]
            if any(jax_name.startswith(f"{path}." if path else "") for jax_name, _ in partners):
                found.setdefault(identity(self.state[name]), name)
        return {identity(self.state[name]): name for name, x in reversed(self.partners.items()) if x} | found

    def _claim(self, name: str, jax_name: str, rule: LeafRule, index: int | None) -> None:
        tensor = self.state[name]
        shape, jax_shape = _shape(tensor), _shape(self.variables[jax_name])
        if name not in self.told and self.transposed.get(name) is False and is_linear(rule):
            rule = dataclasses.replace(rule, axes=None if rule.axes == (1, 0) else (1, 0))
        entry = Entry.of(
            dataclasses.replace(rule, torch=name, jax=jax_name),
            _around(jax_name, self.layers),
            shape or (),
            jax_shape or (),
            "" if shape is None else dtype_name(tensor),
            index,
        )
        taken = self.taken.setdefault(jax_name, [])
        before = next((other for box, other in taken if overlap(box, entry.jax_box)), None)
        if before is not None and not rule.added:
            self.problems.append(f"{name} and {before} of PyTorch both claim {jax_name}")
        elif shape is not None and jax_shape is not None and not _fits(rule, shape, jax_shape, index):
            self.problems.append(f"{name} {list(shape)} does not fit {jax_name} {list(jax_shape)}")
        elif shape is not None and jax_shape is not None:
            self.entries.append(entry)
            self.notes += [f"{name} has to be zero in PyTorch: {jax_name} is one tensor in JAX"] if rule.added else []
        if before is None and not rule.added:
            taken.append((entry.jax_box, name))

    def _rest_of_jax(self) -> list[str]:
        """Return the JAX tensors without a partner; those that should have one are added to the problems."""
        jax_only = [name for name in self.variables if not self.taken.get(name)]
        self.problems += [
            f"{name} {list(shape)} of JAX has no partner in PyTorch"
            for name in jax_only
            if (shape := _shape(self.variables[name])) is not None and not matches(name, self.free)
        ]
        self.problems += _incomplete(self.taken, self.variables)
        return jax_only


def identity(tensor: Any) -> tuple[Any, ...]:
    """Return a key that is equal for two PyTorch tensors with the same memory and the same layout."""
    plain = isinstance(tensor, torch.Tensor) and not _is_lazy(tensor) and tensor.layout == torch.strided
    if not plain or not tensor.numel() or tensor.is_quantized:
        return (id(tensor),)
    layout = tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.is_conj(), tensor.is_neg()
    if tensor.device.type == "meta":
        return tensor.untyped_storage()._cdata, tensor.storage_offset(), *layout
    try:
        return str(tensor.device), tensor.data_ptr(), *layout
    except RuntimeError:  # a subclass without storage
        return (id(tensor),)


def _is_lazy(tensor: Any) -> bool:
    return isinstance(tensor, torch.Tensor) and torch.nn.parameter.is_lazy(tensor)


def _shape(tensor: Any) -> tuple[int, ...] | None:
    """Return the shape of a tensor or variable, or None if it has none or is not initialized."""
    if _is_lazy(tensor):
        return None
    shape = getattr(tensor, "shape", None)
    return None if shape is None else tuple(shape)


def _fits(rule: LeafRule, shape: tuple[int, ...], jax_shape: tuple[int, ...], index: int | None) -> bool:
    """Whether a PyTorch tensor converts by `rule` to a flax tensor, or to layer `index` of it."""
    if index is None:
        return rule.fits(shape, jax_shape)
    return bool(jax_shape) and index < jax_shape[0] and rule.fits(shape, jax_shape[1:])


def _around(name: str, layers: Mapping[str, str]) -> str:
    """Return the type of the innermost module that contains a tensor, skipping dicts and lists."""
    while name not in layers:
        name = name.rpartition(".")[0]
    return layers[name]


def _unlike_parts(name: str, shape: tuple[int, ...], partners: list[tuple[str, LeafRule]]) -> list[str]:
    """Return a problem unless `partners` together cover the tensor `name` exactly once."""
    if any(rule.part[1] > 1 and (not shape or shape[0] % rule.part[1]) for _, rule in partners):
        return []  # it does not fit, which is said for each part
    boxes = [rule.box(shape) for _, rule in partners]
    again = any(overlap(box, other) for i, box in enumerate(boxes) for other in boxes[:i])
    if not again and (0 in shape or _filled(shape, boxes) == math.prod(shape)):
        return []
    return [f"{name} of PyTorch is not whole, and once, in {', '.join(partner for partner, _ in partners)} of JAX"]


def _filled(shape: tuple[int, ...], boxes: Iterable[Box]) -> int:
    return sum(math.prod(box_shape(shape, box)) for box in boxes)


def _incomplete(taken: Mapping[str, list[tuple[Box, str]]], variables: Mapping[str, nnx.Variable]) -> list[str]:
    """Return a problem for each flax tensor that PyTorch fills only partly."""
    found = []
    for name, parts in taken.items():
        shape, boxes = _shape(variables[name]), [box for box, _ in parts]
        if not shape or not any(boxes) or 0 in shape:
            continue
        layers = {box[0][1] for box in boxes if box and box[0][0] == 0 and box[0][1] < shape[0]}
        if all(len(box) == 1 and box[0][::2] == (0, box[0][1] + 1) for box in boxes):
            if len(layers) != shape[0]:
                found.append(f"{name} of JAX has {shape[0]} layers, PyTorch fills {len(layers)}")
        elif (filled := _filled(shape, boxes)) != math.prod(shape):
            found.append(f"{name} of JAX has {math.prod(shape)} elements, PyTorch fills {filled}")
    return found
