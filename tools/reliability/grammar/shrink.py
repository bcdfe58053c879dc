"""A smaller pair with the same fault: nodes go, sizes and levels fall, as long as the fault stays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from tools.reliability.grammar.containers import Chain
from tools.reliability.grammar.node import Node, build
from tools.reliability.grammar.tree import Tree, fits, located, replaced

SIMPLER = {"level": ("forward", "gradients"), "batch": (1, 2), "fresh": (True,)}
"""Fields of a tree and what is simpler there."""


def shrunk(tree: Tree, same: Callable[[Tree], bool], tries: int = 60) -> Tree:
    """The smallest tree found for which `same` holds, in at most `tries` calls of it."""
    left = tries
    smaller = True
    while smaller:
        smaller = False
        for candidate in candidates(tree):
            if left == 0:
                return tree
            left -= 1
            if same(candidate):
                tree, smaller = candidate, True
                break
    return tree


def candidates(tree: Tree) -> Iterator[Tree]:
    """Trees that are simpler in one place and can be built, the largest steps first; the mistake stays in them."""
    for root in _smaller(tree):
        found = dataclasses.replace(tree, root=root)
        if bool(found.mistake) == bool(tree.mistake) and fits(found) and _has_weights(found):
            yield found
    for name, values in SIMPLER.items():
        for value in values:
            if value == getattr(tree, name):
                break
            yield dataclasses.replace(tree, **{name: value})  # type: ignore[arg-type]


def _has_weights(tree: Tree) -> bool:
    return any(weight.requires_grad for weight in build(tree.root, tree.given).parameters())


def _smaller(tree: Tree) -> Iterator[Node]:
    """The root with one node less: a part of a chain left out, or a container replaced by what is inside."""
    for path, node, _ in located(tree.root, tree.given):
        for child in node.children:
            yield replaced(tree.root, path, child)
        if isinstance(node, Chain):
            for i in range(len(node.parts)):
                yield replaced(tree.root, path, node.with_children(node.parts[:i] + node.parts[i + 1 :]))
