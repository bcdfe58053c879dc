"""Record or replace the random draws of a PyTorch model.

Every form of dropout (modules, `functional`, attention's `dropout_p`, LSTM's between its layers, masks drawn by hand)
reaches the dispatcher as one of a few random operations, which a `TorchDispatchMode` can intercept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from parity.random_draws.matching import OWN, SILENT, Handed, Law, Numbers, Site, source_line
from parity.recording.capture import Key, torch_hooks

aten = torch.ops.aten

Fill = Callable[[np.ndarray], torch.Tensor]
"""Function from the values of a draw to the result of the operation."""

LIBRARIES = (f"{os.path.dirname(torch.__file__)}{os.sep}", contextlib.__file__)
"""Path prefixes of source files that contain no model, besides this package's own folder."""


@dataclasses.dataclass(frozen=True)
class _Draw:
    """One random operation: its distribution, the shape of its values, and the conversion to its result."""

    law: Law
    shape: tuple[int, ...]
    fill: Fill | None = None


def _as(like: torch.Tensor, numbers: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(numbers)).to(like.device)


def _probability(p: Any) -> float | None:
    """Return the probability of a draw; None if its elements differ."""
    if not isinstance(p, torch.Tensor):
        return float(p)
    return float(p.reshape(-1)[0]) if p.numel() and bool((p == p.reshape(-1)[0]).all()) else None


def _bernoulli(p: Any, like: torch.Tensor) -> _Draw:
    def fill(u: np.ndarray) -> torch.Tensor:
        limit = p.double() if isinstance(p, torch.Tensor) else p
        return _as(like, u) < limit

    return _Draw(Law("bernoulli", _probability(p)), tuple(like.shape), fill)


def _parse(func: Any, args: Any, kwargs: Any, plain: Callable[[], Any]) -> _Draw | None:
    """Return the draw of `func`; None if it draws nothing. `plain` runs the function."""
    name = func.overloadpacket.__name__.rstrip("_")
    # All arguments by name, including defaults.
    given = {a.name: a.default_value for a in func._schema.arguments if a.has_default_value()}
    given |= dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
    mine: Any = given.get("self")
    match name:
        case "bernoulli":
            p = given.get("p")
            return _bernoulli(mine if p is None else p, mine)
        case "native_dropout":
            return _native_dropout(given) if given.get("train") is not False and given["p"] not in (0, 1) else None
        case "rrelu_with_noise":
            return _rrelu(given) if given["training"] else None
    found = plain()
    if not isinstance(found, torch.Tensor):
        return _Draw(Law(name), ())
    shape = tuple(found.shape)
    match name:
        case "rand" | "rand_like":
            return _Draw(Law("uniform"), shape, lambda u: _as(found, u))
        case "uniform":
            low, high = given.get("from", 0.0), given.get("to", 1.0)
            return _Draw(Law("uniform"), shape, lambda u: _as(found, low + (high - low) * u))
        case "randn" | "randn_like":
            return _Draw(Law("normal"), shape, lambda z: _as(found, z))
        case "normal" | "normal_functional":
            mean, std = (_double(given.get(key, fallback)) for key, fallback in (("mean", 0.0), ("std", 1.0)))
            return _Draw(Law("normal"), shape, lambda z: mean + std * _as(found, z))
        case "exponential":
            return _Draw(Law("exponential"), shape, lambda u: _as(found, -np.log(u) / given.get("lambd", 1.0)))
        case "randint" | "randint_like":
            low, high = given.get("low", 0), given["high"]
            return _Draw(Law("integers"), shape, lambda u: _as(found, np.floor(low + (high - low) * u)))
        case "randperm":
            return _Draw(Law("permutation"), shape, lambda u: _as(found, np.argsort(u)))
        case "multinomial" if given["num_samples"] == 1:
            return _Draw(Law("gumbel"), tuple(mine.shape), lambda u: _sampled(mine, u))
    return _Draw(Law(name), shape)


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) else value


def _sampled(probabilities: torch.Tensor, u: np.ndarray) -> torch.Tensor:
    """Draw one sample per row, as the argmax of log p + Gumbel noise."""
    return (probabilities.double().log() - _as(probabilities, -np.log(u)).log()).argmax(-1, keepdim=True)


def _native_dropout(given: Any) -> _Draw:
    """Return the draw of the fused operation, which returns (output, mask)."""
    x, keep = given["input"], 1.0 - given["p"]

    def fill(u: np.ndarray) -> Any:
        mask = _as(x, u) < keep
        return x * mask / keep, mask

    return _Draw(Law("bernoulli", keep), tuple(x.shape), fill)


def _rrelu(given: Any) -> _Draw:
    x, noise, low, high = (given[key] for key in ("self", "noise", "lower", "upper"))

    def fill(u: np.ndarray) -> torch.Tensor:
        noise.copy_(torch.where(x <= 0, _as(x, low + (high - low) * u), torch.ones_like(x)))
        return x * noise

    return _Draw(Law("uniform"), tuple(x.shape), fill)


class TorchDraws(TorchDispatchMode):
    """Mode that records the draws of `model` in `sites`, and replaces their values by the given ones.

    A draw with the same generator state as an earlier one (a checkpointed part recomputed in the backward pass) counts
    as the same draw.
    """

    def __init__(self, model: torch.nn.Module, handed: Handed | None = None, *, quiet: bool = False) -> None:
        """`quiet`: whether draws without given values keep everything; otherwise they are not changed."""
        super().__init__()
        self.sites: list[Site] = []
        self._handed, self._rest = handed or {}, SILENT if quiet else OWN
        self._around: list[Key] = []
        self._after = ""
        self._count: dict[Key, int] = {}
        self._known: dict[str, tuple[Key, int]] = {}
        self._modules = dict(model.named_modules())
        self._stack = contextlib.ExitStack()
        self._model = model

    def __enter__(self) -> TorchDraws:
        devices = sorted({p.device.index or 0 for p in self._model.parameters() if p.device.type == "cuda"})
        self._stack.enter_context(torch.random.fork_rng(devices))
        self._stack.enter_context(torch_hooks(self._model, self._entered, self._left))
        # Use the math implementation of attention: a fused kernel would draw internally.
        self._stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._stack.close()

    def _entered(self, key: Key, tensors: Any) -> None:
        self._around.append(key)

    def _left(self, key: Key, tensors: Any) -> None:
        self._around.pop()
        if any(True for _ in self._modules[key[0]].parameters()):
            self._after = key[0]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        state = _state(kwargs.get("generator"), args)
        outcome: list[Any] = []

        def plain() -> Any:
            if not outcome:
                outcome.append(func(*args, **kwargs))
            return outcome[0]

        draw = _parse(func, args, kwargs, plain)
        result = plain()  # always run, to advance the generator
        if draw is None or 0 in draw.shape:
            return result
        key, index = self._known.get(state) or self._new(state, draw)
        numbers = self._numbers(key, index)
        if numbers is OWN or draw.fill is None:
            return result
        return _put(func, args, result, _value(draw, numbers, result))

    def _numbers(self, key: Key, index: int) -> Numbers:
        given = self._handed.get(key, ())
        return given[index] if index < len(given) else self._rest

    def _new(self, state: str, draw: _Draw) -> tuple[Key, int]:
        key = self._around[-1] if self._around else ("", 0)
        index = self._count.get(key, 0)
        self._count[key] = index + 1
        self._known[state] = key, index
        owner, silent = self._owner(key[0]), draw.law.family == "bernoulli"
        line = _line()
        self.sites.append(Site(key, index, draw.law, draw.shape, owner, self._after, line, state, silent=silent))
        return key, index

    def _owner(self, path: str) -> str:
        """Return the enclosing module with parameters: names of dropouts and lists may differ in JAX."""
        while path and not any(True for _ in self._modules[path].parameters()):
            path = path.rpartition(".")[0]
        return path


def _value(draw: _Draw, numbers: Numbers, result: Any) -> Any:
    """Return the replacement of the result; a silent mask has the value by which it is divided."""
    assert draw.fill is not None
    if isinstance(numbers, np.ndarray):
        return draw.fill(numbers)
    if draw.law.family != "bernoulli" or draw.law.keep is None:
        return result
    if isinstance(result, tuple):  # the fused operation includes the division
        mask = torch.ones_like(result[1])
        return draw.fill(np.zeros(draw.shape))[0] * draw.law.keep, mask
    return torch.full(draw.shape, draw.law.keep, dtype=torch.float64, device=result.device)


def _put(func: Any, args: Any, result: Any, value: Any) -> Any:
    """Return `value` as the operation would: in place, into `out`, or as a new tensor."""
    if isinstance(result, tuple):
        return tuple(v.to(r.dtype) for v, r in zip(value, result, strict=True))
    in_place = any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments)
    return result.copy_(value) if in_place and func.overloadpacket is not aten.rrelu_with_noise else value.to(result)


def _state(generator: torch.Generator | None, args: Any) -> str:
    """Return a digest of the state of the generator that an operation draws from."""
    if generator is not None:
        state = generator.get_state()
    else:
        devices = [a.device for a in args if isinstance(a, torch.Tensor) and a.device.type == "cuda"]
        state = torch.cuda.get_rng_state(devices[0]) if devices else torch.get_rng_state()
    return hashlib.blake2b(state.numpy().tobytes(), digest_size=8).hexdigest()


def _line() -> str:
    """Return the innermost line of the model's own source."""
    return source_line(LIBRARIES)


def torch_sites(model: torch.nn.Module, run: Callable[[], Any]) -> list[Site]:
    """Return the draws of one forward pass, made by `run`. It runs twice, to detect constant draws."""
    found: list[list[Site]] = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(2):
            with TorchDraws(model) as draws, torch.no_grad():
                run()
            found.append(draws.sites)
            torch.manual_seed(1)  # start the next pass from another state
    again = {site.state for site in found[1]}
    return [dataclasses.replace(site, constant=site.state in again) for site in found[0]]


@contextlib.contextmanager
def quiet(model: torch.nn.Module) -> Iterator[None]:
    """Context manager that disables all dropout of `model`."""
    with TorchDraws(model, quiet=True):
        yield
