"""Nodes around other nodes: chains, branches, shared and frozen modules, and calls through a transformation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import torch
from flax import nnx

from tools.reliability.grammar.node import (
    TOKENS,
    Container,
    FlaxHalf,
    Format,
    Node,
    TorchHalf,
    UnfitError,
    build,
    call,
    empty,
    port,
    stop,
    unchanged,
)
from tools.reliability.grammar.outputs import Picture


@dataclasses.dataclass(frozen=True, repr=False)
class Chain(Node):
    """One after the other."""

    parts: tuple[Node, ...] = ()

    @property
    def children(self) -> tuple[Node, ...]:
        return self.parts

    def with_children(self, children: Sequence[Node]) -> Node:
        return dataclasses.replace(self, parts=tuple(children))

    def inside(self, given: Format) -> Sequence[Format]:
        return self.formats(given)[:-1]

    def formats(self, given: Format) -> list[Format]:
        """What goes into each part, and what comes out in the end."""
        found = [given]
        for part in self.parts:
            found.append(part.out(found[-1]))
        return found

    def check(self, given: Format) -> None:
        if not self.parts:
            raise UnfitError("a chain of nothing")

    def out(self, given: Format) -> Format:
        self.check(given)
        return self.formats(given)[-1]

    def mistakes(self, given: Format) -> tuple[str, ...]:
        formats = self.formats(given)
        last = len(self.parts) > 1 and formats[-1] == formats[-2] and not isinstance(self.parts[-1], Picture)
        turned = len(self.parts) > 1 and all(f == given for f in formats)
        return (*(("last part missing",) if last else ()), *(("order reversed",) if turned else ()))


class TorchChain(TorchHalf, of=Chain):
    def __init__(self, node: Chain, given: Format) -> None:
        super().__init__(node, given)
        self.layers = torch.nn.ModuleList(map(build, node.parts, node.formats(given)))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        for layer in self.layers:
            x = call(layer, x, mask)
        return x


class FlaxChain(FlaxHalf, of=Chain):
    def __init__(self, node: Chain, given: Format, twin: TorchChain) -> None:
        super().__init__(node, given, twin)
        self.layers = nnx.List(map(port, node.parts, node.formats(given), twin.layers))

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        layers = list(self.layers)
        layers = {"last part missing": layers[:-1], "order reversed": layers[::-1]}.get(self.wrong, layers)
        for layer in layers:
            x = call(layer, x, mask)
        return x


@dataclasses.dataclass(frozen=True, repr=False)
class Residual(Container):
    """x + gate * inner(x): the gate is 1, a learned number per channel, or learned and zero."""

    wrongs = ("residual missing", "residual twice", "residual gradient stopped", "inner gradient stopped")
    inner: Node = dataclasses.field(default_factory=Chain)
    gate: str = ""  # "", "learned", "zero"

    def out(self, given: Format) -> Format:
        return unchanged(self.inner, given)


class TorchResidual(TorchHalf, of=Residual):
    def __init__(self, node: Residual, given: Format) -> None:
        super().__init__(node, given)
        self.inner = build(node.inner, given)
        shape = [given.channels] + [1] * (len(given.shape) - 1 if given.torch_axis == 1 else 0)
        start = torch.zeros(shape) if node.gate == "zero" else torch.randn(shape)
        self.gate = torch.nn.Parameter(start) if node.gate else None

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        y = call(self.inner, x, mask)
        return x + (y if self.gate is None else self.gate * y)


class FlaxResidual(FlaxHalf, of=Residual):
    def __init__(self, node: Residual, given: Format, twin: TorchResidual) -> None:
        super().__init__(node, given, twin)
        self.inner = port(node.inner, given, twin.inner)
        # In PyTorch's shape, as a checkpoint has it.
        self.gate = None if twin.gate is None else nnx.Param(jnp.asarray(twin.gate.detach().numpy()))

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        y = call(self.inner, x, mask)
        y = y if self.gate is None else self.gate[...].reshape(-1) * y
        if self.wrong == "inner gradient stopped":
            y = stop(y)
        wrong = {"residual missing": 0 * x, "residual twice": 2 * x, "residual gradient stopped": stop(x)}
        return wrong.get(self.wrong, x) + y


@dataclasses.dataclass(frozen=True, repr=False)
class Branches(Node):
    """Two nodes on the same input, whose outputs are concatenated (along the channels), added or multiplied."""

    first: Node = dataclasses.field(default_factory=Chain)
    second: Node = dataclasses.field(default_factory=Chain)
    how: str = "concat"  # "concat", "sum", "product"

    @property
    def children(self) -> tuple[Node, ...]:
        return self.first, self.second

    def with_children(self, children: Sequence[Node]) -> Node:
        return dataclasses.replace(self, first=children[0], second=children[1])

    def out(self, given: Format) -> Format:
        a, b = self.first.out(given), self.second.out(given)
        if self.how == "concat" and a.with_channels(1) == b.with_channels(1):
            return a.with_channels(a.channels + b.channels)
        if self.how == "concat" or a != b:
            raise UnfitError(f"{a} and {b} do not go together")
        return a

    def mistakes(self, given: Format) -> tuple[str, ...]:
        return {
            "concat": ("order", "interleaved") if self.first.out(given) == self.second.out(given) else ("order",),
            "sum": ("difference", "second gradient stopped"),
            "product": ("sum", "second gradient stopped"),
        }[self.how]


class TorchBranches(TorchHalf, of=Branches):
    def __init__(self, node: Branches, given: Format) -> None:
        super().__init__(node, given)
        self.how, self.axis = node.how, node.out(given).torch_axis
        self.first, self.second = build(node.first, given), build(node.second, given)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        a, b = call(self.first, x, mask), call(self.second, x, mask)
        return torch.cat((a, b), self.axis) if self.how == "concat" else a + b if self.how == "sum" else a * b


class FlaxBranches(FlaxHalf, of=Branches):
    def __init__(self, node: Branches, given: Format, twin: TorchBranches) -> None:
        super().__init__(node, given, twin)
        self.how = node.how
        self.first, self.second = port(node.first, given, twin.first), port(node.second, given, twin.second)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        a, b = call(self.first, x, mask), call(self.second, x, mask)
        if self.how == "concat":
            if self.wrong == "interleaved":
                return jnp.stack((a, b), -1).reshape(*a.shape[:-1], -1)
            return jnp.concatenate((b, a) if self.wrong == "order" else (a, b), -1)
        b = stop(b) if self.wrong == "second gradient stopped" else b
        b = -b if self.wrong == "difference" else b
        return a + b if self.how == "sum" or self.wrong == "sum" else a * b


@dataclasses.dataclass(frozen=True, repr=False)
class Repeated(Container):
    """One module twice: called twice, or registered under two names that are both called."""

    wrongs = ("called once", "called three times", "first call stopped")
    inner: Node = dataclasses.field(default_factory=Chain)
    names: bool = False

    def out(self, given: Format) -> Format:
        return unchanged(self.inner, given)


class TorchRepeated(TorchHalf, of=Repeated):
    def __init__(self, node: Repeated, given: Format) -> None:
        super().__init__(node, given)
        self.inner = build(node.inner, given)
        self.again = self.inner if node.names else None

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return call(self.again or self.inner, call(self.inner, x, mask), mask)


class FlaxRepeated(FlaxHalf, of=Repeated):
    def __init__(self, node: Repeated, given: Format, twin: TorchRepeated) -> None:
        super().__init__(node, given, twin)
        self.inner = port(node.inner, given, twin.inner)
        self.again = self.inner if node.names else None

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        again = self.inner if self.again is None else self.again
        y = call(self.inner, x, mask)
        if self.wrong == "called once":
            return y
        y = call(again, stop(y) if self.wrong == "first call stopped" else y, mask)
        return call(again, y, mask) if self.wrong == "called three times" else y


@dataclasses.dataclass(frozen=True, repr=False)
class Frozen(Container):
    """PyTorch does not train what is inside; flax leaves that to the optimiser."""

    inner: Node = dataclasses.field(default_factory=Chain)

    how: ClassVar[str] = ""

    def build(self, given: Format) -> torch.nn.Module:
        return TorchTraced(self, given).requires_grad_(False)

    def port(self, given: Format, twin: Any) -> nnx.Module:
        module = FlaxTraced(self, given, twin)
        module.frozen = True
        return module


@dataclasses.dataclass(frozen=True, repr=False)
class Traced(Container):
    """What is inside is called through `how` in flax: jax.jit, nnx.jit, nnx.remat or jax.checkpoint."""

    inner: Node = dataclasses.field(default_factory=Chain)
    how: str = "jax.jit"


TRANSFORMATIONS = ("jax.jit", "nnx.jit", "nnx.remat", "jax.checkpoint")


class TorchTraced(TorchHalf, of=Traced):
    def __init__(self, node: Traced | Frozen, given: Format) -> None:
        super().__init__(node, given)
        self.inner = build(node.inner, given)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return call(self.inner, x, mask)


class FlaxTraced(FlaxHalf, of=Traced):
    def __init__(self, node: Traced | Frozen, given: Format, twin: TorchTraced) -> None:
        super().__init__(node, given, twin)
        self.inner, self.how, self.frozen = port(node.inner, given, twin.inner), node.how, False

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> Any:
        if self.how in ("jax.jit", "jax.checkpoint"):
            transformed = jax.jit if self.how == "jax.jit" else jax.checkpoint
            return transformed(lambda x, mask: call(self.inner, x, mask))(x, mask)
        if self.how in ("nnx.jit", "nnx.remat"):
            return (nnx.jit if self.how == "nnx.jit" else nnx.remat)(call)(self.inner, x, mask)
        return call(self.inner, x, mask)


@dataclasses.dataclass(frozen=True, repr=False)
class Tied(Container):
    """Ids to tokens by a table, `inner`, and logits by the same table."""

    kinds = ("ids",)
    wrongs = ("head gradient stopped", "embedding gradient stopped", "logits shifted by one token", "scaled")
    inner: Node = dataclasses.field(default_factory=Chain)
    to: int = 4

    def inside(self, given: Format) -> Sequence[Format]:
        return [self._tokens(given)]

    def _tokens(self, given: Format) -> Format:
        return Format(TOKENS, (*given.shape, self.to), given.mask)

    def out(self, given: Format) -> Format:
        self.check(given)
        return unchanged(self.inner, self._tokens(given)).with_channels(given.vocabulary)


class TorchTied(TorchHalf, of=Tied):
    def __init__(self, node: Tied, given: Format) -> None:
        super().__init__(node, given)
        self.table = torch.nn.Embedding(given.vocabulary, node.to)
        self.inner = build(node.inner, node._tokens(given))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return torch.nn.functional.linear(call(self.inner, self.table(ids), mask), self.table.weight)


class FlaxTied(FlaxHalf, of=Tied):
    def __init__(self, node: Tied, given: Format, twin: TorchTied) -> None:
        super().__init__(node, given, twin)
        self.inner = port(node.inner, node._tokens(given), twin.inner)
        self.table = nnx.Embed(given.vocabulary, node.to, embedding_init=empty, rngs=nnx.Rngs(0))
        self.table.embedding.set_value(jnp.asarray(twin.table.weight.detach().numpy()))

    def __call__(self, ids: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        wrong, x, head = self.wrong, self.table(ids), self.table.embedding[...]
        y = call(self.inner, stop(x) if wrong == "embedding gradient stopped" else x, mask)
        logits = y @ (stop(head) if wrong == "head gradient stopped" else head).T
        logits = jnp.roll(logits, 1, 1) if wrong == "logits shifted by one token" else logits
        return logits * head.shape[-1] ** -0.5 if wrong == "scaled" else logits
