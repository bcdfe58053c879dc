"""The last node of a model: what it hands out, and in what structure."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import torch
from flax import nnx

from tools.reliability.grammar.node import IMAGE, TOKENS, VECTOR, FlaxHalf, Format, Node, TorchHalf, array, linear

FINFO = float(torch.finfo(torch.float32).min)
MASKED = {"masked 1e9": -1e9, "masked finfo": FINFO}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Output:
    """What many libraries hand out."""

    logits: Any
    extra: Any = None


class Named(NamedTuple):
    logits: Any
    extra: Any


STRUCTURES = ("dict", "nested", "tuple", "list", "none", "dataclass", "named tuple")


@dataclasses.dataclass(frozen=True, repr=False)
class Heads(Node):
    """Two Linear heads, handed out in a structure; `to` numbers each."""

    kinds = (VECTOR, TOKENS)
    structure: str = "dict"
    to: int = 4

    def mistakes(self, given: Format) -> tuple[str, ...]:
        keyed = ("other keys", "key missing", "keys exchanged and order too") if self.structure == "dict" else ()
        turned = given.kind == TOKENS and given.shape[0] > 1
        nested = ("flat",) if self.structure == "nested" else ()
        none = ("zeros for None",) if self.structure == "none" else ()
        one = self.structure == "none"
        return (*keyed, *nested, *none, *(("transposed",) if turned else ()), "shape") + (
            () if one else ("exchanged", "second missing", "second the first")
        )


def _structured(structure: str, a: Any, b: Any) -> Any:
    match structure:
        case "dict":
            return {"mean": a, "logvar": b}
        case "nested":
            return {"out": (a, {"aux": b})}
        case "none":
            return a, None
        case "dataclass":
            return Output(a, b)
        case "named tuple":
            return Named(a, b)
        case "list":
            return [a, b]
        case _:
            return a, b


class TorchHeads(TorchHalf, of=Heads):
    def __init__(self, node: Heads, given: Format) -> None:
        super().__init__(node, given)
        self.structure = node.structure
        self.first = torch.nn.Linear(given.channels, node.to)
        self.second = None if node.structure == "none" else torch.nn.Linear(given.channels, node.to)

    def forward(self, x: torch.Tensor) -> Any:
        return _structured(self.structure, self.first(x), None if self.second is None else self.second(x))


class FlaxHeads(FlaxHalf, of=Heads):
    def __init__(self, node: Heads, given: Format, twin: TorchHeads) -> None:
        super().__init__(node, given, twin)
        self.first = linear(twin.first)
        self.second = None if twin.second is None else linear(twin.second)

    def __call__(self, x: jax.Array) -> Any:
        wrong, a = self.wrong, self.first(x)
        b: Any = None if self.second is None else self.second(x)
        match wrong:
            case "exchanged":
                a, b = b, a
            case "second the first":
                b = a
            case "transposed":
                a = a.swapaxes(1, 2)
            case "shape":
                a = a[..., None]
            case "other keys":
                return {"mu": a, "logvar": b}
            case "key missing":
                return {"mean": a}
            case "keys exchanged and order too":
                return {"logvar": a, "mean": b}
            case "flat":
                return {"out": (a, b)}
            case "zeros for None":
                return a, jnp.zeros_like(a)
            case "second missing":
                return _structured(self.node.structure, a, None)
        return _structured(self.node.structure, a, b)


@dataclasses.dataclass(frozen=True, repr=False)
class Bundle(Node):
    """A module inside the model that hands out a structure of two tensors; the one around it multiplies them."""

    kinds = (VECTOR, TOKENS)
    wrongs = ("exchanged", "second the first", "product without the sigmoid")
    structure: str = "dict"  # one of STRUCTURES but "none"
    to: int = 4

    def out(self, given: Format) -> Format:
        self.check(given)
        return given.with_channels(self.to)

    @property
    def heads(self) -> Heads:
        return Heads(self.structure, self.to, wrong=self.own)


def _members(output: Any) -> tuple[Any, Any]:
    """The two tensors of a structure."""
    match output:
        case {"mean": a, "logvar": b}:
            return a, b
        case {"out": (a, {"aux": b})}:
            return a, b
        case Output():
            return output.logits, output.extra
        case (a, b):
            return a, b
    raise TypeError(output)


class TorchBundle(TorchHalf, of=Bundle):
    def __init__(self, node: Bundle, given: Format) -> None:
        super().__init__(node, given)
        self.heads = TorchHeads(node.heads, given)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = _members(self.heads(x))
        return a * torch.sigmoid(b)


class FlaxBundle(FlaxHalf, of=Bundle):
    def __init__(self, node: Bundle, given: Format, twin: TorchBundle) -> None:
        super().__init__(node, given, twin)
        self.heads = FlaxHeads(node.heads, given, twin.heads)

    def __call__(self, x: jax.Array) -> jax.Array:
        a, b = _members(self.heads(x))
        return a * b if self.wrong == "product without the sigmoid" else a * jax.nn.sigmoid(b)


@dataclasses.dataclass(frozen=True, repr=False)
class Logits(Node):
    """One tensor: a Linear layer, then `how`: "", huge numbers where a buffer says so, or a complex spectrum."""

    kinds = (VECTOR, TOKENS)
    to: int = 5
    how: str = ""  # "", a key of MASKED, "spectrum"

    def mistakes(self, given: Format) -> tuple[str, ...]:
        own = {"spectrum": ("conjugated", "real part", "absolute value"), "": ("softmax", "shifted by the largest")}
        turned = ("transposed",) if given.kind == TOKENS and given.shape[0] > 1 else ()
        return (*own.get(self.how, ("prior negated", "scale forgotten", "mask inverted")), *turned)


class TorchLogits(TorchHalf, of=Logits):
    def __init__(self, node: Logits, given: Format) -> None:
        super().__init__(node, given)
        self.how, self.head = node.how, torch.nn.Linear(given.channels, node.to)
        self.register_buffer("prior", torch.randn(node.to) if node.how in MASKED else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.head(x)
        if self.how in MASKED:
            y = 5 * y + self.prior
            return y.masked_fill(torch.arange(y.shape[-1]) == 1, MASKED[self.how])
        return torch.fft.fft(y) if self.how == "spectrum" else y


class FlaxLogits(FlaxHalf, of=Logits):
    def __init__(self, node: Logits, given: Format, twin: Any) -> None:
        super().__init__(node, given, twin)
        self.head = linear(twin.head)
        self.prior = nnx.Variable(jnp.asarray(array(twin.prior))) if node.how in MASKED else None

    def __call__(self, x: jax.Array) -> jax.Array:
        wrong, how, y = self.wrong, self.node.how, self.head(x)
        if self.prior is not None:
            y = (1 if wrong == "scale forgotten" else 5) * y
            y = y + (-1 if wrong == "prior negated" else 1) * self.prior[...]
            masked = jnp.arange(y.shape[-1]) == 1
            y = jnp.where(~masked if wrong == "mask inverted" else masked, MASKED[how], y)
        if how == "spectrum":
            y = jnp.fft.fft(y)
        match wrong:
            case "conjugated":
                return y.conj()
            case "real part":
                return y.real
            case "absolute value":
                return jnp.abs(y)
            case "softmax":
                return jax.nn.softmax(y)
            case "shifted by the largest":
                return y - y.max(-1, keepdims=True)
            case "transposed":
                return y.swapaxes(1, 2)
        return y


@dataclasses.dataclass(frozen=True, repr=False)
class Picture(Node):
    """An image is handed out, in PyTorch's layout on both sides."""

    kinds = (IMAGE,)

    def mistakes(self, given: Format) -> tuple[str, ...]:
        # Channels last would be no mistake: `parity` accepts them, and says so, where the layers tell the channels.
        return ("sides exchanged",)


class TorchPicture(TorchHalf, of=Picture):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class FlaxPicture(FlaxHalf, of=Picture):
    def __call__(self, x: jax.Array) -> jax.Array:
        return x.transpose(0, 3, 2, 1) if self.wrong == "sides exchanged" else x.transpose(0, 3, 1, 2)
