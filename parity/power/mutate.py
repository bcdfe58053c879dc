"""A copy of a model that makes one mistake, and is a model like any other: it runs, trains, and can be copied.

A port with that mistake computes what this model computes, up to rounding.
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
"""Takes the place of a module's forward: given the module, its class's forward, and the arguments."""


def mutated(model: torch.nn.Module, mutation: Mutation, paired: Collection[str]) -> torch.nn.Module:
    """A copy of `model` in which every call of the mutation's module makes the mistake.

    Args:
        paired: paths of the modules that are not part of the arithmetic of the one around them.
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
    """Makes `module` one of a class whose forward is `around`; a copy of it is too."""
    cls = type(module)

    def forward(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        return around(self, cls.forward, args, kwargs)

    module.__class__ = type(cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__})


class NotMadeError(LookupError):
    """The mistake cannot be made in a call: other tensors, other steps."""


@dataclasses.dataclass
class _Running:
    """A call of the altered module that is under way: what its inner modules returned, and are to return instead."""

    tape: Any
    instead: Mapping[Key, Any]
    outputs: dict[Key, Any] = dataclasses.field(default_factory=dict)
    count: dict[str, int] = dataclasses.field(default_factory=collections.Counter)


_ACTIVE: list[_Running] = []


@dataclasses.dataclass
class _Live(Recording):
    """A call as it is made: its inner modules run."""

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
    """A module whose forward is its class's, and keeps what it returned."""

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
    """A copy with the same parameters, its own buffers, and no hooks: what runs in it is noted nowhere."""
    memo: dict[int, Any] = {id(x): x for x in module.parameters()}
    memo |= {id(x): x.detach().clone() for x in module.buffers()}
    twin = copy.deepcopy(module, memo)
    for inner in twin.modules():
        inner._forward_hooks = collections.OrderedDict()
        inner._forward_pre_hooks = collections.OrderedDict()
    return twin


def _inner(name: str) -> Around:
    """An inner module's steps are its own; what it returns is at hand in the module around, or read otherwise there."""

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
