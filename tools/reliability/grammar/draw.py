"""Random trees: small sizes, odd and even, every kind of node in every place that it fits."""

from __future__ import annotations

import random
from collections.abc import Callable

from tools.reliability.grammar import attention, containers, images, norms, outputs, plain, tokens
from tools.reliability.grammar.node import IDS, IMAGE, TOKENS, VECTOR, Format, Node, UnfitError, build
from tools.reliability.grammar.tree import Tree, with_mistake

CHANNELS = (1, 2, 3, 4, 4, 6, 8)
LARGEST = 600
"""Numbers per batch item beyond which nothing is made larger."""

Make = Callable[["Draw", Format, int], Node]


class Draw(random.Random):
    """Random choices, and whether the model is trained (then no running statistics, which flax updates otherwise)."""

    train = False

    def rarely(self) -> bool:
        return self.random() < 0.15

    def act(self) -> str:
        return self.choice(list(plain.ACTIVATIONS))


def draw_tree(seed: int) -> Tree:
    """The pair of this seed, right or with one mistake."""
    draw = Draw(seed)
    level = draw.choices(("forward", "gradients", "train"), (5, 3, 1))[0]
    draw.train = level == "train"
    given, root = _trainable(draw)
    tree = Tree(
        root,
        given,
        batch=draw.choice((1, 2, 2, 3, 3)),
        seed=draw.randrange(1000),
        level=level,
        mask=draw.choice(("float32", "int64", "bool")) if root.uses_mask else "",
        fresh=draw.rarely(),
    )
    return with_mistake(tree, draw) if draw.random() < 0.5 else tree


def _trainable(draw: Draw) -> tuple[Format, Node]:
    """A model in which there is something to train, and what it is given."""
    while True:
        given = _given(draw)
        root = _model(draw, given)
        if any(weight.requires_grad for weight in build(root, given).parameters()):
            return given, root


def _given(draw: Draw) -> Format:
    kind = draw.choices((VECTOR, TOKENS, IMAGE, IDS), (2, 4, 4, 2))[0]
    channels, count = draw.choice(CHANNELS), draw.choice((1, 2, 3, 4, 5, 7))
    match kind:
        case "vector":
            return Format(kind, (channels,))
        case "tokens":
            return Format(kind, (count, channels), mask=draw.random() < 0.5)
        case "ids":
            return Format(kind, (count,), mask=draw.random() < 0.5, vocabulary=draw.choice((3, 5, 8, 11)))
    side = draw.choice((4, 5, 6, 8))
    return Format(kind, (draw.choice((1, 3, 3, 4, 6)), side, side if draw.random() < 0.5 else draw.choice((4, 5, 7))))


def _model(draw: Draw, given: Format) -> Node:
    """Stem, body and what is handed out."""
    parts: list[Node] = []
    if given.kind == IDS:
        if draw.random() < 0.4:
            to = draw.choice((4, 6, 8))
            return containers.Tied(_chain(draw, Format(TOKENS, (*given.shape, to), given.mask), 2, same=True), to)
        parts.append(tokens.Embedding(draw.choice((4, 6, 8)), draw.random() < 0.3))
    body = _extended(draw, parts, given, draw.randint(1, 3))
    return containers.Chain(tuple(_ended(draw, body, given)))


def _extended(draw: Draw, parts: list[Node], given: Format, count: int, depth: int = 2) -> list[Node]:
    format = containers.Chain(tuple(parts)).out(given) if parts else given
    for _ in range(count):
        node = draw_node(draw, format, depth)
        parts, format = [*parts, node], node.out(format)
    return parts


def _ended(draw: Draw, parts: list[Node], given: Format) -> list[Node]:
    """With pooling, where it is drawn, and a last node."""
    format = containers.Chain(tuple(parts)).out(given)
    if format.kind == IMAGE:
        if draw.random() < 0.3:
            return [*parts, outputs.Picture()]
        node: Node = images.ToTokens() if draw.random() < 0.3 else images.ToVector(draw.random() < 0.4)
        parts, format = [*parts, node], node.out(format)
    if format.kind == TOKENS and draw.random() < 0.5:
        how = draw.choice(("mean", "first", "max", *(("masked mean",) * 2 if format.mask else ())))
        parts, format = [*parts, tokens.TokenMean(how)], Format(VECTOR, format.shape[-1:])
    chance = draw.random()
    if chance < 0.2:
        return parts
    if chance < 0.6:
        return [*parts, outputs.Heads(draw.choice(outputs.STRUCTURES), draw.choice((1, 2, 4, 5)))]
    how = draw.choices(("", *outputs.MASKED, "spectrum"), (4, 1, 1, 1))[0]
    return [*parts, outputs.Logits(draw.choice((2, 3, 4, 5, 7)), how)]


def _chain(draw: Draw, given: Format, depth: int, same: bool = False) -> Node:
    """One to three nodes; with `same`, they hand out the format that they are given."""
    for _ in range(30):
        parts = _extended(draw, [], given, draw.choice((1, 1, 2, 3)), depth - 1)
        if not same:
            break
        out = containers.Chain(tuple(parts)).out(given)
        back = _back(draw, out, given)
        if out == given or back is not None:
            parts = parts if back is None else [*parts, back]
            break
    else:
        parts = [plain.Activation(draw.act())]
    return parts[0] if len(parts) == 1 else containers.Chain(tuple(parts))


def _back(draw: Draw, out: Format, given: Format) -> Node | None:
    """A node that leads back to the channels of `given`, where that is all that differs."""
    if out == given or out.with_channels(1) != given.with_channels(1):
        return None
    return images.Conv(given.channels, 1, padding=0) if given.kind == IMAGE else plain.Linear(given.channels)


def draw_node(draw: Draw, given: Format, depth: int) -> Node:
    """A node that can take `given`."""
    makers, weights = zip(*(MAKERS | (CONTAINERS if depth > 0 else {})).items(), strict=True)
    while True:
        node = draw.choices(makers, weights)[0](draw, given, depth)
        try:
            if _size(node.out(given)) <= max(LARGEST, _size(given)):
                return node
        except UnfitError:
            continue


def _size(given: Format) -> int:
    size = 1
    for side in given.shape:
        size *= side
    return size


def _conv(draw: Draw, given: Format, depth: int) -> Node:
    kernel = draw.choice((1, 2, 3, 3, 5))
    depthwise = draw.rarely()
    groups = given.channels if depthwise else draw.choice((1, 1, 1, 2, 3))
    return images.Conv(
        given.channels if depthwise else draw.choice(CHANNELS),
        kernel,
        draw.choice((1, 1, 2, 3)),
        draw.choice((0, kernel // 2, 1)),
        draw.choice((1, 1, 1, 2)),
        groups,
        draw.random() < 0.7,
    )


def _attention(draw: Draw, given: Format, depth: int) -> Node:
    heads = draw.choice((1, 2, 4))
    return attention.Attention(
        heads,
        draw.choice((1, heads, 2)),
        causal=draw.random() < 0.4,
        padded=given.mask and draw.random() < 0.6,
        sdpa=draw.random() < 0.4,
        float32=draw.rarely(),
        fill=draw.choice(list(attention.FILLS)),
        rate=draw.choice((0.1, 0.5)) if draw.train and draw.random() < 0.5 else 0.0,
    )


def _batch_norm(draw: Draw, given: Format, depth: int) -> Node:
    if draw.train:
        return norms.GroupNorm(1)
    return norms.BatchNorm()


def _dropout(draw: Draw, given: Format, depth: int) -> Node:
    rate = draw.choice((0.1, 0.3, 0.5))
    return plain.Dropout(rate, *draw.choice(((False, False), (False, False), (True, False), (False, True))))


def _same(draw: Draw, given: Format, depth: int) -> Node:
    return _chain(draw, given, depth, same=True)


def _branches(draw: Draw, given: Format, depth: int) -> Node:
    how = draw.choice(("concat", "sum", "product"))
    return containers.Branches(_same(draw, given, depth), _same(draw, given, depth), how)


def _traced(draw: Draw, given: Format, depth: int) -> Node:
    """JAX's own transformations cannot be around a module that changes: nnx.Dropout when it draws, and all modules
    inside of flax's transformations.
    """
    inner = _chain(draw, given, depth)
    changes = any(getattr(n, "how", "") in ("nnx.jit", "nnx.remat") for n in inner.walk())
    if draw.train:
        changes |= any(isinstance(n, plain.Dropout) or getattr(n, "rate", 0) for n in inner.walk())
    return containers.Traced(inner, draw.choice(("nnx.jit", "nnx.remat") if changes else containers.TRANSFORMATIONS))


MAKERS: dict[Make, float] = {
    lambda d, g, n: plain.Linear(d.choice(CHANNELS), d.random() < 0.7): 6,
    lambda d, g, n: plain.Activation(d.act()): 6,
    lambda d, g, n: plain.Mlp(d.choice((2, 5, 8)), d.act(), d.random() < 0.4): 4,
    lambda d, g, n: plain.Glu(): 2,
    lambda d, g, n: plain.Standardise(): 1,
    lambda d, g, n: tokens.Positions(d.random() < 0.5): 3,
    lambda d, g, n: plain.Buffers(): 1,
    lambda d, g, n: plain.Scale(d.rarely()): 1,
    lambda d, g, n: tokens.TokenMean(d.choice(("mean", "first", "max", "masked mean"))): 0.5,
    _dropout: 2,
    lambda d, g, n: norms.LayerNorm(d.choice((1e-5, 1e-5, 1e-3, 1e-6))): 4,
    lambda d, g, n: norms.RMSNorm(d.choice((1e-6, 1e-5)), d.rarely()): 2,
    lambda d, g, n: norms.GroupNorm(d.choice((1, 2, 3))): 3,
    _batch_norm: 3,
    _conv: 9,
    lambda d, g, n: images.ConvTranspose(
        d.choice((2, 3, 4)), *d.choice(((2, 2, 0), (3, 1, 1), (3, 2, 1), (2, 1, 0)))
    ): 1,
    lambda d, g, n: images.Pool(d.random() < 0.5, *d.choice(((2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 1, 0)))): 2,
    lambda d, g, n: images.SqueezeExcite(d.choice((1, 2, 3))): 2,
    lambda d, g, n: images.ToTokens(): 1,
    lambda d, g, n: images.ToVector(d.random() < 0.5): 0.5,
    _attention: 5,
    lambda d, g, n: outputs.Bundle(d.choice([s for s in outputs.STRUCTURES if s != "none"]), d.choice(CHANNELS)): 1,
    lambda d, g, n: attention.Spectrum(d.choice(("filter", "complex filter", "real part"))): 1,
}
"""Node -> how often it is drawn, where it fits."""

CONTAINERS: dict[Make, float] = {
    lambda d, g, n: containers.Residual(_same(d, g, n), d.choice(("", "", "learned", "zero"))): 6,
    _branches: 3,
    lambda d, g, n: containers.Repeated(_same(d, g, n), d.random() < 0.3): 1,
    lambda d, g, n: containers.Frozen(_chain(d, g, n)): 1,
    _traced: 2,
}
