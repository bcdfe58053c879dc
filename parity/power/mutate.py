"""Copy of a model with one mistake, which is an ordinary module: it can be run, trained and copied.

A port with that mistake computes the same as this model, up to rounding.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch

from parity.causes.replay import Recording
from parity.power.mutations import Mutation, found
from parity.recording.capture import Key

Around = Callable[[torch.nn.Module, Callable[..., Any], Any, Any], Any]
"""Replacement of a module's forward; receives the module, the forward of its class, and the arguments."""


def mutated(model: torch.nn.Module, mutation: Mutation, paired: Collection[str]) -> torch.nn.Module:
    """Return a copy of `model` in which every call of the mutation's module makes the mistake.

    Args:
        paired: Paths of the modules that are not part of the arithmetic of the enclosing module.
    """
    changed = copy.deepcopy(model)
    modules = dict(changed.named_modules())
    inside = [name for name in paired if name != mutation.module and name in modules and _is_in(name, mutation.module)]
    for name in inside:
        if not any(_is_in(name, other) for other in inside if other != name):
            wrap(modules[name], _inner(name))
    wrap(modules[mutation.module], _altered(mutation))
    return changed


def _is_in(name: str, outer: str) -> bool:
    return not outer or name.startswith(f"{outer}.")


def wrap(module: torch.nn.Module, around: Around) -> None:
    """Change the class of `module` to a subclass whose forward is `around`; copies of the module keep it."""
    cls = type(module)

    def forward(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        return around(self, cls.forward, args, kwargs)

    module.__class__ = type(cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__})


class NotMadeError(LookupError):
    """Raised if the mistake cannot be made in a call, as its tensors or steps differ."""


@dataclasses.dataclass
class _Running:
    """State of a running call of the altered module: results of its inner modules, and their replacements."""

    tape: Any
    instead: Mapping[Key, Any]
    outputs: dict[Key, Any] = dataclasses.field(default_factory=dict)
    count: dict[str, int] = dataclasses.field(default_factory=collections.Counter)


_ACTIVE: list[_Running] = []


@dataclasses.dataclass
class _Live(Recording):
    """A live call: its inner modules are run instead of replayed."""

    outputs: dict[Key, Any] = dataclasses.field(default_factory=dict)

    @contextlib.contextmanager
    def _stubs(self, results: Mapping[Key, Any], sites: Any, tape: Any, handed: Any) -> Iterator[None]:
        running = _Running(tape, results)
        _ACTIVE.append(running)
        try:
            yield
        finally:
            _ACTIVE.remove(running)
            self.outputs = running.outputs


class _Own:
    """Proxy of a module that runs the forward of its class and keeps the output."""

    def __init__(self, module: torch.nn.Module, forward: Callable[..., Any]) -> None:
        self._module, self._forward, self.output = module, forward, None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.output = self._forward(self._module, *args, **kwargs)
        return self.output


def _altered(mutation: Mutation) -> Around:
    def around(module: torch.nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        gradients = torch.is_grad_enabled()
        with torch.random.fork_rng(devices=[]):
            trial = _live(_twin(module), forward, args, kwargs, mutation.module)
            _, steps = trial.run(gradients=gradients)
        known = Recording(trial.module, trial.args, trial.kwargs, trial.outputs, {}, path=mutation.module)
        change = mutation.among(found(known, steps))
        if change is None:
            raise NotMadeError(f"{mutation.module or 'the model'}: {mutation.text}: no such step in this call")
        live = _live(module, forward, args, kwargs, mutation.module)
        live.run(change.alterations, dict(change.inner or {}), gradients=gradients)
        own: Any = live.module
        return own.output

    return around


def _live(module: torch.nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any, path: str) -> _Live:
    own: Any = _Own(module, forward)
    return _Live(own, args, kwargs, {}, {}, path=path)


def _twin(module: torch.nn.Module) -> torch.nn.Module:
    """Return a copy with shared parameters, own buffers and no hooks, so that running it has no side effects."""
    memo: dict[int, Any] = {id(x): x for x in module.parameters()}
    memo |= {id(x): x.detach().clone() for x in module.buffers()}
    twin = copy.deepcopy(module, memo)
    for inner in twin.modules():
        inner._forward_hooks = collections.OrderedDict()
        inner._forward_pre_hooks = collections.OrderedDict()
    return twin


def _inner(name: str) -> Around:
    """Run an inner module without recording its steps, keep its output, and return the replacement if there is one."""

    def around(module: torch.nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if not _ACTIVE:
            return forward(module, *args, **kwargs)
        running = _ACTIVE[-1]
        with running.tape.paused():
            output = forward(module, *args, **kwargs)
        key = (name, running.count[name])
        running.count[name] += 1
        running.outputs[key] = output
        return running.instead.get(key, output)

    return around
