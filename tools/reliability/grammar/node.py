"""Nodes of a random model: each builds its layer once in PyTorch and once in flax, with a mistake if it has one.

Shapes: B batch, N tokens, C channels, H W sides of an image. PyTorch's images are (B, C, H, W), flax's (B, H, W, C).
A node prints as the Python expression that makes it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

VECTOR, TOKENS, IMAGE, IDS = "vector", "tokens", "image", "ids"


@dataclasses.dataclass(frozen=True)
class Format:
    """What goes into a node: its kind and its shape without the batch, in PyTorch's order of axes.

    `mask` says whether a mask (B, N) of the tokens can be used, `vocabulary` how many ids there are.
    """

    kind: str
    shape: tuple[int, ...]
    mask: bool = False
    vocabulary: int = 0

    @property
    def channels(self) -> int:
        return self.shape[0] if self.kind == IMAGE else self.shape[-1]

    @property
    def torch_axis(self) -> int:
        """The axis of the channels in PyTorch; in flax it is always the last."""
        return 1 if self.kind == IMAGE else -1

    def with_channels(self, channels: int) -> Format:
        shape = (channels, *self.shape[1:]) if self.kind == IMAGE else (*self.shape[:-1], channels)
        return dataclasses.replace(self, shape=shape)


class UnfitError(Exception):
    """A node cannot take what it is given."""


@dataclasses.dataclass(frozen=True, repr=False)
class Node:
    """One layer or container. `wrong` is the mistake in flax's half, one of `mistakes`, or empty; `wrongs` are those
    that it may have wherever it stands."""

    kinds: ClassVar[tuple[str, ...]] = (VECTOR, TOKENS, IMAGE)
    wrongs: ClassVar[tuple[str, ...]] = ()
    torch_half: ClassVar[type[TorchHalf]]
    flax_half: ClassVar[type[FlaxHalf]]
    needs_mask: ClassVar[bool] = False
    wrong: str = dataclasses.field(default="", kw_only=True)

    def __repr__(self) -> str:
        fields = [f for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in fields)})"

    @property
    def own(self) -> str:
        """The mistake, if it belongs to this node alone."""
        return "" if self.wrong in GENERAL else self.wrong

    @property
    def children(self) -> tuple[Node, ...]:
        return ()

    def with_children(self, children: Sequence[Node]) -> Node:
        return self

    def inside(self, given: Format) -> Sequence[Format]:
        """What each child is given."""
        return [given] * len(self.children)

    def check(self, given: Format) -> None:
        """Raises UnfitError if this node cannot take what it is given."""
        if given.kind not in self.kinds or (self.needs_mask and not given.mask):
            raise UnfitError(f"{self} cannot take {given}")

    def out(self, given: Format) -> Format:
        """What comes out; raises UnfitError."""
        self.check(given)
        return given

    def mistakes(self, given: Format) -> tuple[str, ...]:
        """The mistakes that belong to this node alone; see `GENERAL` for those of all."""
        return self.wrongs

    def build(self, given: Format) -> torch.nn.Module:
        """The PyTorch module."""
        return self.torch_half(self, given)

    def port(self, given: Format, twin: Any) -> nnx.Module:
        """The flax module with the weights of its twin; with its own mistake, but without the general ones."""
        return self.flax_half(self, given, twin)

    @property
    def uses_mask(self) -> bool:
        return self.needs_mask or any(child.uses_mask for child in self.children)

    def walk(self) -> Iterator[Node]:
        """This node and all inside it."""
        yield self
        for child in self.children:
            yield from child.walk()


class TorchHalf(torch.nn.Module):
    """The PyTorch module of the nodes `of`, which makes its weights as it is made."""

    def __init_subclass__(cls, of: type[Node] | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if of is not None:  # not for a subclass that `parity` makes
            of.torch_half = cls

    def __init__(self, node: Any, given: Format) -> None:
        super().__init__()
        self.node = node


class FlaxHalf(nnx.Module):
    """The flax module of the nodes `of`, with the weights of its PyTorch twin; `wrong` is its own mistake."""

    def __init_subclass__(cls, of: type[Node] | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if of is not None:
            of.flax_half = cls

    def __init__(self, node: Any, given: Format, twin: Any) -> None:
        self.node, self.wrong = node, node.own


class Container(Node):
    """A node around one other, `inner`."""

    inner: Node

    @property
    def children(self) -> tuple[Node, ...]:
        return (self.inner,)

    def with_children(self, children: Sequence[Node]) -> Node:
        return dataclasses.replace(self, inner=children[0])  # type: ignore[call-arg]

    def out(self, given: Format) -> Format:
        self.check(given)
        return self.inner.out(given)


def unchanged(node: Node, given: Format) -> Format:
    """`given`, if `node` hands out the same format.

    Raises:
        UnfitError: it does not.
    """
    if node.out(given) != given:
        raise UnfitError(f"{node} changes {given}")
    return given


def build(node: Node, given: Format) -> torch.nn.Module:
    """The PyTorch module of a node."""
    module = node.build(given)
    module.masked = node.uses_mask  # type: ignore[assignment]
    return module


def port(node: Node, given: Format, twin: Any) -> nnx.Module:
    """The flax module of a node, with its mistake and with the weights of its PyTorch twin."""
    module: Any = node.port(given, twin)
    module.masked = node.uses_mask
    return altered(module, GENERAL[node.wrong]) if node.wrong in GENERAL else module


_seeds = itertools.count()


def new_streams() -> None:
    """From here on `streams` begins anew: models that are built one after the other draw the same."""
    global _seeds
    _seeds = itertools.count()


def streams() -> nnx.Rngs:
    """Random numbers of a module's own: with one seed for all, their draws would be the same."""
    return nnx.Rngs(next(_seeds))


def call(module: Any, x: Any, mask: Any = None) -> Any:
    """`module` of either framework on `x`, and on the mask if it wants one."""
    return module(x, mask) if getattr(module, "masked", False) else module(x)


# Weights


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy().copy()


def param(tensor: torch.Tensor) -> nnx.Param:
    return nnx.Param(jnp.asarray(array(tensor)))


def fill(variable: Any, tensor: torch.Tensor, axes: Sequence[int] | None = None) -> None:
    """Writes PyTorch's tensor, transposed, into flax's."""
    value = array(tensor)
    variable.set_value(jnp.asarray(value if axes is None else value.transpose(axes)))


def empty(key: Any, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
    """An initialiser that computes nothing: what it makes is filled."""
    return jnp.asarray(np.zeros(shape, dtype))


EMPTY: dict[str, Any] = {"kernel_init": empty, "bias_init": empty}
"""Of a flax layer with a kernel."""

EMPTY_NORM: dict[str, Any] = {"scale_init": empty, "bias_init": empty}
"""Of a flax normalisation."""


def linear(twin: torch.nn.Linear) -> nnx.Linear:
    """The flax twin of a Linear."""
    module = nnx.Linear(twin.in_features, twin.out_features, use_bias=twin.bias is not None, rngs=nnx.Rngs(0), **EMPTY)
    fill(module.kernel, twin.weight, (1, 0))
    if twin.bias is not None:
        fill(module.bias, twin.bias)
    return module


# Mistakes that any node may have


stop = jax.lax.stop_gradient


def _each(change: Callable[[jax.Array], jax.Array]) -> Callable[[Any], Any]:
    """`change` of every floating or complex array of an output."""
    return lambda tree: jax.tree.map(lambda x: change(x) if jnp.issubdtype(x.dtype, jnp.inexact) else x, tree)


def _rounded(dtype: Any) -> Callable[[jax.Array], jax.Array]:
    return lambda x: x if jnp.iscomplexobj(x) else x.astype(dtype).astype(x.dtype)


def _one_element(x: jax.Array) -> jax.Array:
    return x.reshape(-1).at[-1].multiply(1 + 1e-5).reshape(x.shape)


GENERAL: dict[str, Callable[[Any], Any]] = {
    "scaled by 1.00001": _each(lambda x: x * (1 + 1e-5)),
    "one element off by 1e-5": _each(_one_element),
    "shifted by 1e-6": _each(lambda x: x + 1e-6),
    "negated": _each(lambda x: -x),
    "zeros": _each(lambda x: x * 0),
    "gradient stopped": _each(stop),
    "gradient halved": _each(lambda x: x / 2 + stop(x / 2)),
    "in bfloat16": _each(_rounded(jnp.bfloat16)),
    "in float32": _each(_rounded(jnp.float32)),
    "batch reversed": _each(lambda x: x[::-1]),
}
"""Mistake -> what it does to the output of any module."""


def altered(module: nnx.Module, change: Callable[[Any], Any]) -> nnx.Module:
    """`module` with `change` applied to what it returns; still an instance of its class."""
    kind: Any = type(module)

    def changed(self: Any, *args: Any, **kwargs: Any) -> Any:
        return change(kind.__call__(self, *args, **kwargs))

    module.__class__ = type(kind.__name__, (kind,), {"__call__": changed})
    return module
