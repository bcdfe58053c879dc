"""Names of the tensors of a flax model, and the PyTorch names that the rules give them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from flax import nnx
from flax.nnx import graphlib

from parity.carry.rules import LeafRule, Rules


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


def expected(
    modules: Mapping[str, nnx.Module], names: Mapping[str, str], rules: Rules
) -> dict[str, dict[str, list[LeafRule]]]:
    """Map PyTorch names (in JAX's module paths) to the flax tensors that they fill, each with its rules.

    A rule may belong to the layer that owns the tensor or to an enclosing one (attention, for its projections); the
    outermost takes precedence. Several rules of a layer for one tensor are alternatives.
    """
    known = {path: _by_name(rules.leaf_rules(module)) for path, module in modules.items()}
    found: dict[str, dict[str, list[LeafRule]]] = {}
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
