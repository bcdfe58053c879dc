"""A copy of a model that makes one mistake, and is a model like any other: it runs, trains, and can be copied.

A port with that mistake computes what this model computes, up to rounding.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from parity.causes.replay import Place, Step, tensors_of
from parity.power.mutations import Mutation, Pool, recent, result_name, start_pool
from parity.power.recordings import copied

Around = Callable[[torch.nn.Module, Callable[..., Any], Any, Any], Any]
"""Takes the place of a module's forward: given the module, its own forward, and the arguments."""

_TORCH = str(Path(torch.__file__).parent)
_ACTIVE: list[Any] = []
"""The calls of altered modules that are under way, the innermost last."""


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
            wrap(modules[name], _inner(name, mutation))
    if not mutation.inner:
        wrap(modules[mutation.module], _altered(mutation))
    return changed


def _is_in(name: str, outer: str) -> bool:
    return not outer or name.startswith(f"{outer}.")


def wrap(module: torch.nn.Module, around: Around) -> None:
    """Makes `module` one of a class whose forward is `around`; a copy of it is too."""
    cls = type(module)

    def forward(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        def own(*args: Any, **kwargs: Any) -> Any:
            return cls.forward(self, *args, **kwargs)

        return around(self, own, args, kwargs)

    module.__class__ = type(cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__})


def _altered(mutation: Mutation) -> Around:
    def around(module: torch.nn.Module, own: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        mode = _Altering(mutation, module, (args, kwargs))
        _ACTIVE.append(mode)
        try:
            with mode:
                return own(*args, **kwargs)
        finally:
            _ACTIVE.remove(mode)

    return around


def _inner(name: str, mutation: Mutation) -> Around:
    """An inner module is not altered, and what it returns is at hand in the one around, or read otherwise there."""

    def around(module: torch.nn.Module, own: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        mode = _ACTIVE[-1] if _ACTIVE else None
        with mode.paused() if mode else contextlib.nullcontext():
            output = own(*args, **kwargs)
            if mode is not None:
                mode.inner.setdefault(name, output)
            return mutation.reordered(output) if name == mutation.inner else output

    return around


class _Altering(TorchFunctionMode):
    """Alters the steps of one place while a module runs."""

    def __init__(self, mutation: Mutation, module: torch.nn.Module, given: Any) -> None:
        super().__init__()
        self.mutation, self.module, self.given = mutation, module, given
        self.inner: dict[str, Any] = {}
        self.results: Pool = []
        self.is_paused = False

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        before, self.is_paused = self.is_paused, True
        try:
            yield
        finally:
            self.is_paused = before

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.is_paused:
            return func(*args, **(kwargs or {}))
        step = Step(_place(), func, tuple(args), kwargs or {})
        output = self._altered(step) if self._is_it(step) else step.run()
        self.results = recent([*self.results, *((result_name(step), x) for x in tensors_of(output)[:1])])
        return output

    def _is_it(self, step: Step) -> bool:
        """The same function at the same line; PyTorch's own modules have one place."""
        wanted = self.mutation.place
        same = step.place == wanted if wanted[1] else step.place[1] == 0
        return same and step.name == self.mutation.name

    def _altered(self, step: Step) -> Any:
        pool = start_pool(self.module, self.given, self.inner, self.mutation.module)
        variant = self.mutation.chosen(_tried(step), [*pool, *self.results])
        return step.run() if variant is None else variant.alter(step)


def _tried(step: Step) -> Step:
    """The step with its output, on copies, so that nothing done in place and no random number is spent."""
    with torch.random.fork_rng(devices=[]):
        trial = Step(step.place, step.function, *copied((step.args, dict(step.kwargs))))
        return Step(step.place, step.function, step.args, step.kwargs, trial.run())


def _place() -> Place:
    """Where the model's own code is; line 0 if all of it, from the altered module on, is PyTorch's."""
    frame = sys._getframe(2)
    while frame.f_code.co_filename.startswith(_TORCH) and frame.f_back is not None:
        frame = frame.f_back
    inside = frame.f_code.co_filename != __file__
    return frame.f_code.co_filename, frame.f_lineno if inside else 0, frame.f_lasti
