"""Names of the tensors of a flax model, and the PyTorch names that the rules give them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from flax import nnx
from flax.nnx import graphlib

from parity.carry.rules import LeafRule, Rules

Wanted = dict[str, dict[str, list[LeafRule]]]
"""PyTorch's names, the JAX tensors that they fill, and the rules of each."""


def all_names(nodes: Iterable[tuple[str, Any]], variables: Mapping[str, nnx.Variable]) -> dict[str, str]:
    """Map every name of every variable, including aliases of shared modules, to its name in `jax_variables`.

    `nodes` are those of `every_path`.
    """
    known = {id(variable): name for name, variable in variables.items()}
    found = {name: name for name in variables}
    for path, node in nodes:
        if id(node) in known:
            found.setdefault(path, known[id(node)])
    return found


def every_path(model: nnx.Module) -> Iterator[tuple[str, Any]]:
    """Yield all modules and variables with each of their dotted paths; cycles are cut."""
    stack: list[tuple[tuple[str, ...], Any, frozenset[int]]] = [((), model, frozenset())]
    while stack:
        path, node, around = stack.pop()
        if isinstance(node, nnx.Module | nnx.Variable):
            yield ".".join(path), node
        if isinstance(node, nnx.Variable | nnx.RngState) or id(node) in around or not graphlib.is_node(node):
            continue
        kind = graphlib.get_node_impl(node)
        for key, child in kind.node_dict(node).items() if kind is not None else ():
            stack.append(((*path, str(key)), child, around | {id(node)}))


def expected(modules: Mapping[str, nnx.Module], names: Mapping[str, str], rules: Rules) -> Wanted:
    """Map PyTorch names (in JAX's module paths) to the flax tensors that they fill, each with its rules.

    A rule may belong to the layer that owns the tensor or to an enclosing one (attention, for its projections); the
    outermost takes precedence. Several rules of a layer for one tensor are alternatives.
    """
    known = {path: _by_name(rules.leaf_rules(module)) for path, module in modules.items()}
    found: Wanted = {}
    for name, first in names.items():
        parts = name.split(".")
        owner, told = name.rpartition(".")[0], [LeafRule(parts[-1], parts[-1])]
        for depth in range(len(parts)):
            path, rest = ".".join(parts[:depth]), ".".join(parts[depth:])
            if rest in known.get(path, {}):
                owner, told = path, known[path][rest]
                break
        for rule in told:
            alternatives = found.setdefault(join(owner, rule.torch), {}).setdefault(first, [])
            if rule not in alternatives:
                alternatives.append(rule)
    return found


def _by_name(rules: Sequence[LeafRule]) -> dict[str, list[LeafRule]]:
    found: dict[str, list[LeafRule]] = {}
    for rule in rules:
        found.setdefault(rule.jax, []).append(rule)
    return found


def join(path: str, leaf: str) -> str:
    return f"{path}.{leaf}" if path else leaf


# Recurrent layers of PyTorch, such as `torch.nn.LSTM`, whose cells are modules of their own in JAX

_IN_LAYER = re.compile(r"(?:(?P<path>.*)\.)?(?P<leaf>(?:weight|bias)_(?:ih|hh))_l(?P<layer>\d+(?:_reverse)?)")
_BACKWARDS = re.compile(r"(?:^|[._])(?:backwards?|bwd?|reversed?|rev|right_to_left)(?=[._\d]|$)", re.IGNORECASE)


def recurrent(wanted: Wanted, names: Iterable[str]) -> tuple[Wanted, list[str]]:
    """Return what the tensors of PyTorch's recurrent layers fill, where JAX has one cell for each layer and direction.

    Cells lie inside the module of the layer's name, in several that are called so with a number (`lstm_0`), or, if it
    is the only layer without such cells there, beside it. They are taken in order; those of the other direction are
    called `backward`, `bwd`, `reverse` or the like.

    Args:
        wanted: As `expected`; a cell has the name `weight_ih` there.
        names: PyTorch's names, in JAX's module paths.

    Returns:
        The additions to `wanted`, and notes on layers whose cells are known by their order only.
    """
    layers: dict[str, dict[str, list[str]]] = {}
    for name in names:
        if (found := _IN_LAYER.fullmatch(name)) and name not in wanted:
            layers.setdefault(found["path"] or "", {}).setdefault(found["layer"], []).append(found["leaf"])
    cells = sorted((n.rpartition(".")[0] for n in wanted if n.rpartition(".")[2] == "weight_ih"), key=_natural)
    inside = {path: [cell for cell in cells if _below(cell, path) is not None] for path in layers}
    free = [cell for cell in cells if not any(cell in own for own in inside.values())]
    more: Wanted = {}
    notes = []
    for path, own in layers.items():
        around = path.rpartition(".")[0]
        rivals = [x for x in layers if not inside[x] and x.rpartition(".")[0] == around]
        found_cells = inside[path] or [cell for cell in free if rivals == [path] and _below(cell, around) is not None]
        pairs = _in_order(sorted(own, key=_natural), found_cells, path)
        for slot, cell in pairs:
            more |= {join(path, f"{leaf}_l{slot}"): wanted.get(join(cell, leaf), {}) for leaf in own[slot]}
        marked = any(_is_backwards(cell, path) for _, cell in pairs)
        if pairs and (not inside[path] or (not marked and any("_" in slot for slot in own))):
            notes.append(f"the cells of {path or 'the model'} were taken in order: {', '.join(c for _, c in pairs)}")
    return more, notes


def _in_order(slots: Sequence[str], cells: Sequence[str], path: str) -> list[tuple[str, str]]:
    """Pair the layers and directions of PyTorch with JAX's cells; nothing if they are not equally many."""
    backwards = [cell for cell in cells if _is_backwards(cell, path)]
    if backwards:
        cells = [*(cell for cell in cells if cell not in backwards), *backwards]
        slots = sorted(slots, key=lambda slot: "_" in slot)
        if sum("_" in slot for slot in slots) != len(backwards):
            return []
    return list(zip(slots, cells, strict=True)) if len(slots) == len(cells) else []


def _is_backwards(cell: str, path: str) -> bool:
    below = _below(cell, path)
    return _BACKWARDS.search(cell if below is None else below) is not None


def _below(cell: str, path: str) -> str | None:
    """Return the path of a cell below that of a layer, or below one that is called so with a number; else None."""
    if not path or cell == path:
        return cell.removeprefix(path)
    found = re.fullmatch(rf"{re.escape(path)}(_?\d+)?(?:\.(.*))?", cell)
    return None if found is None else f"{found[1] or ''}.{found[2] or ''}"


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Sort key under which `cell_2` comes before `cell_10`."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]
