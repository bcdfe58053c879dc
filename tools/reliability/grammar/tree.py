"""A whole pair: a tree of nodes with the inputs, the weights and the level at which it is compared.

It prints as the Python expression that makes it: `from tools.reliability.grammar.tree import *` is all that needs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Iterator

import numpy as np
import torch
from flax import nnx

from tools.reliability.grammar.attention import Attention, Spectrum
from tools.reliability.grammar.containers import Branches, Chain, Frozen, Repeated, Residual, Tied, Traced
from tools.reliability.grammar.images import Conv, ConvTranspose, Pool, SqueezeExcite, ToTokens, ToVector
from tools.reliability.grammar.node import GENERAL, IDS, Format, Node, UnfitError, build, new_streams, port
from tools.reliability.grammar.norms import BatchNorm, GroupNorm, LayerNorm, RMSNorm
from tools.reliability.grammar.outputs import Bundle, Heads, Logits, Picture
from tools.reliability.grammar.plain import (
    Activation,
    Buffers,
    Dropout,
    Glu,
    Linear,
    Mlp,
    Scale,
    Standardise,
)
from tools.reliability.grammar.tokens import Embedding, Positions, TokenMean

__all__ = [
    "Activation",
    "Attention",
    "BatchNorm",
    "Branches",
    "Buffers",
    "Bundle",
    "Chain",
    "Conv",
    "ConvTranspose",
    "Dropout",
    "Embedding",
    "Format",
    "Frozen",
    "Glu",
    "GroupNorm",
    "Heads",
    "LayerNorm",
    "Linear",
    "Logits",
    "Mlp",
    "Picture",
    "Pool",
    "Positions",
    "RMSNorm",
    "Repeated",
    "Residual",
    "Scale",
    "Spectrum",
    "SqueezeExcite",
    "Standardise",
    "Tied",
    "ToTokens",
    "ToVector",
    "TokenMean",
    "Traced",
    "Tree",
]

UNSEEN_FORWARD = ("gradient", "stopped", "dropout", "forgotten", "rate", "one draw")
"""Words of mistakes that the forward pass in evaluation mode does not show."""

Path = tuple[int, ...]
"""Where a node is: which child of which child."""


@dataclasses.dataclass(frozen=True, repr=False)
class Tree:
    """A pair. `seed` draws the inputs and the weights; `fresh` leaves the weights as PyTorch initialises them."""

    root: Node
    given: Format
    batch: int = 2
    seed: int = 0
    level: str = "gradients"
    mask: str = ""
    fresh: bool = False

    __repr__ = Node.__repr__

    @property
    def mistake(self) -> tuple[Node, str] | None:
        """The node that is wrong in flax's half, and how; None if all are right."""
        return next(((node, node.wrong) for node in self.root.walk() if node.wrong), None)

    @property
    def right(self) -> Tree:
        """The same pair without the mistake."""
        return dataclasses.replace(self, root=_right(self.root))

    @property
    def size(self) -> int:
        return sum(1 for _ in self.root.walk())

    def inputs(self) -> tuple[np.ndarray, ...]:
        """As PyTorch's model takes them: numbers, or ids, and the mask."""
        draw = np.random.RandomState(self.seed)
        shape = (self.batch, *self.given.shape)
        ids = self.given.kind == IDS
        x = draw.randint(0, self.given.vocabulary, shape) if ids else draw.standard_normal(shape).astype(np.float32)
        return (x, _mask(draw, shape[:2], self.mask)) if self.root.uses_mask else (x,)

    def models(self) -> tuple[torch.nn.Module, nnx.Module]:
        """Both halves, with the same weights."""
        with _drawn(self.seed):
            model = build(self.root, self.given)
            if not self.fresh:
                _stir(model)
        new_streams()
        return model, port(self.root, self.given, model)


def _right(node: Node) -> Node:
    return dataclasses.replace(node.with_children([_right(child) for child in node.children]), wrong="")


def _mask(draw: np.random.RandomState, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Of 0 and 1; the first token of each batch item is always in."""
    mask = (draw.random_sample(shape) < 0.6).astype(dtype or "float32")
    mask[:, 0] = 1
    return mask


@contextlib.contextmanager
def _drawn(seed: int) -> Iterator[None]:
    """PyTorch's random numbers from `seed`; its own stream is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _stir(model: torch.nn.Module) -> None:
    """Random numbers for what PyTorch initialises alike (scales and biases), but for gates that are zero."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            leaf = name.rpartition(".")[2]
            if leaf in ("weight", "bias", "scale") and weight.ndim == 1:
                weight.add_(0.3 * torch.randn_like(weight))


def located(node: Node, given: Format, path: Path = ()) -> Iterator[tuple[Path, Node, Format]]:
    """Every node with its path and what it is given."""
    yield path, node, given
    for i, (child, inner) in enumerate(zip(node.children, node.inside(given), strict=True)):
        yield from located(child, inner, (*path, i))


def replaced(node: Node, path: Path, by: Node) -> Node:
    """`node` with the one at `path` replaced."""
    if not path:
        return by
    children = list(node.children)
    children[path[0]] = replaced(children[path[0]], path[1:], by)
    return node.with_children(children)


def with_mistake(tree: Tree, draw: random.Random) -> Tree:
    """`tree` with one mistake at one node, that its level may show: in two of three cases one of the node's own."""
    path, node, given = draw.choice(list(located(tree.root, tree.given)))
    own, general = (
        [name for name in names if tree.level != "forward" or not any(word in name for word in UNSEEN_FORWARD)]
        for names in (node.mistakes(given), GENERAL)
    )
    wrong = draw.choice(own if own and draw.random() < 2 / 3 else general)
    return dataclasses.replace(tree, root=replaced(tree.root, path, dataclasses.replace(node, wrong=wrong)))


def fits(tree: Tree) -> bool:
    try:
        tree.root.out(tree.given)
    except UnfitError:
        return False
    return True
