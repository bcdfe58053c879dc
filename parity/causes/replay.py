"""Replay one call of one PyTorch module with a single function call altered.

The call is recorded once, inside the whole model: its arguments, and the outputs of its inner modules. In a replay the
inner modules return the recorded tensors for any input, so that only the module's own arithmetic is left, and each
tensor function of that arithmetic (`softmax`, `cat`, `x + y`, ...) is a step that can be altered. The model needs no
change: `torch.overrides.TorchFunctionMode` intercepts every function that PyTorch code calls on tensors.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from parity.causes.fused import multi_head_attention
from parity.recording.capture import Key

Place = tuple[str, int, int]
"""File, line and instruction in the model's code; the same in every loop iteration and every call of a method."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One call of a tensor function: its place, arguments and output."""

    place: Place
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any = None
    occurrence: int = 0
    """Number of earlier calls of this function at this place."""
    module: str = ""
    """Path of the innermost module that runs it."""

    @property
    def where(self) -> str:
        """File and line, for messages; empty if the module is PyTorch's own."""
        file, line, _ = self.place
        return f" ({Path(file).name}:{line})" if line else ""

    @property
    def name(self) -> str:
        """Name of the function without outer underscores: `add` for `x + y`, `torch.add` and `x.add_(y)`."""
        return getattr(self.function, "__name__", "").strip("_")

    def get(self, position: int, keyword: str, default: Any = None) -> Any:
        """Return an argument, passed by position or by keyword."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(keyword, default)

    def run(self, changes: Mapping[tuple[int, str], Any] | None = None) -> Any:
        """Call the function, with the arguments at the given (position, keyword) replaced."""
        args, kwargs = list(self.args), dict(self.kwargs)
        for (position, keyword), value in (changes or {}).items():
            if len(args) > position:
                args[position] = value
            else:
                kwargs[keyword] = value
        return self.function(*args, **kwargs)


Alter = Callable[..., Any]
"""Function that computes the replacement of a step's output from the step as it occurs in the replay."""

Target = tuple[Place, str, "int | None"]
"""Place, function name, and index of the call there (None: all calls)."""

Alterations = Sequence[tuple["Target | None", Alter]]
"""Pairs of target and alteration; target None: every step."""

Sites = dict["Key | None", list[torch.Tensor]]
"""Inputs that the module passes to each call of an inner module; under None, the module's outputs."""


@dataclasses.dataclass
class Recording:
    """Recording of one call of a module; `inner` maps each call of an inner module to its output."""

    module: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inner: dict[Key, Any]
    modules: Mapping[str, torch.nn.Module]
    in_place: bool = True
    """Whether the module changes tensors in place, so that replays need copies; determined by the first run."""
    whole: set[str] = dataclasses.field(default_factory=set)
    """Fused functions that cannot be written out in this call."""
    path: str = ""
    scored: bool = False
    """Whether the call computes a softmax."""

    def relative(self, path: str) -> str:
        """Return the path of an inner module relative to this one."""
        return path.removeprefix(f"{self.path}.") if self.path else path

    def own(self) -> dict[str, torch.Tensor]:
        """Return the module's parameters and buffers, without those of the recorded inner modules."""
        inner = {self.relative(path) for path, _ in self.inner}
        every = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
        return {name: x for name, x in every.items() if not any(name.startswith(f"{path}.") for path in inner)}

    def run(
        self, alterations: Alterations = (), inner: Mapping[Key, Any] | None = None, *, gradients: bool = False
    ) -> tuple[Sites, list[Step]]:
        """Replay the call, with some steps altered or other results of inner modules.

        With `gradients` the result can be differentiated.

        Returns:
            The inputs of inner modules and the outputs; and, if no step is altered, the steps that returned tensors.
        """
        sites: Sites = {}
        tape = _Tape(alterations, self.whole, copies=self.in_place)
        results = {**self.inner, **(inner or {})}
        handed: list[tuple[torch.Tensor, int]] = []
        args, kwargs = self._handed((self.args, self.kwargs), handed)
        names = {} if alterations or inner is not None else {m: path for path, m in self.modules.items()}
        with (
            torch.set_grad_enabled(gradients),
            self._stubs(results, sites, tape, handed),
            tape.in_modules(self.path, names),
            tape,
        ):
            output = self.module.forward(*args, **kwargs)
        sites[None] = tensors_of(output)
        if not alterations and inner is None:
            self.in_place = any(tensor._version != version for tensor, version in (*handed, *tape.seen))
        return sites, tape.steps

    def _handed(self, tree: Any, handed: list[tuple[torch.Tensor, int]]) -> Any:
        """Return the tree (copied if the module works in place); append its tensors and versions to `handed`."""
        tree = copied(tree) if self.in_place else tree
        handed += [(tensor, tensor._version) for tensor in tensors_of(tree)]
        return tree

    @contextlib.contextmanager
    def _stubs(
        self, results: Mapping[Key, Any], sites: Sites, tape: _Tape, handed: list[tuple[torch.Tensor, int]]
    ) -> Iterator[None]:
        """Within the context, recorded inner modules return `results` and store their inputs in `sites`."""
        first: dict[str, int] = {}
        for path, count in self.inner:
            first[path] = min(count, first.get(path, count))

        def stub(path: str) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                key = (path, first[path])
                first[path] += 1
                with tape.paused():
                    given = tensors_of((args, kwargs))
                    handed.extend((tensor, tensor._version) for tensor in given)
                    sites[key] = [x.clone() for x in given] if self.in_place else given
                    return self._handed(results[key], handed)

            return forward

        stubbed = [(self.modules[path], vars(self.modules[path]).get("forward"), stub(path)) for path in list(first)]
        try:
            for module, _, forward in stubbed:
                vars(module)["forward"] = forward
            yield
        finally:
            for module, own, _ in stubbed:
                if own is None:
                    vars(module).pop("forward", None)
                else:
                    vars(module)["forward"] = own


class _Tape(TorchFunctionMode):
    """Record the steps that return tensors, or alter the targeted steps."""

    def __init__(self, alterations: Alterations, whole: set[str], *, copies: bool) -> None:
        super().__init__()
        self.alterations, self.whole, self.copies = alterations, whole, copies
        self.steps: list[Step] = []
        self.seen: list[tuple[torch.Tensor, int]] = []
        self.is_paused = False
        self.open = [""]
        self.count: dict[tuple[Place, str], int] = {}

    @contextlib.contextmanager
    def in_modules(self, path: str, names: Mapping[torch.nn.Module, str]) -> Iterator[None]:
        """Note, for the modules in `names`, which of them is running; at the beginning it is the one at `path`."""
        self.open = [path]
        handles: list[Any] = []

        def leave(*_: Any) -> None:
            self.open.pop()

        for module in names:
            handles.append(module.register_forward_pre_hook(lambda m, *_: self.open.append(names[m])))
            handles.append(module.register_forward_hook(leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        self.is_paused = True
        try:
            yield
        finally:
            self.is_paused = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.is_paused:
            return func(*args, **kwargs)
        step = Step(_place(), func, tuple(args), kwargs)
        if step.name in WRITTEN_OUT and step.name not in self.whole:
            output = self._written_out(step)
            if output is not None:
                return output
        # Counted before it runs: an alteration may change what follows, but not this order.
        occurrence = self.count.get((step.place, step.name), 0)
        self.count[step.place, step.name] = occurrence + 1
        step = dataclasses.replace(step, occurrence=occurrence, module=self.open[-1])
        if self.alterations:
            alter = self._alter(step)
            return step.run() if alter is None else alter(step)
        kept = _kept(step) if self.copies else step
        self.seen += [(tensor, tensor._version) for tensor in tensors_of((step.args, step.kwargs))]
        output = step.run()
        if tensors_of(output):
            self.seen += [(tensor, tensor._version) for tensor in tensors_of(output)]
            self.steps.append(dataclasses.replace(kept, output=copied(output) if self.copies else output))
        return output

    def _alter(self, step: Step) -> Alter | None:
        for target, alter in self.alterations:
            if target is None or (target[:2] == (step.place, step.name) and target[2] in (None, step.occurrence)):
                return alter
        return None

    def _written_out(self, step: Step) -> Any:
        """Run a fused function written out, each function in it a step; None if the result differs."""
        try:
            with self:
                output = WRITTEN_OUT[step.name](*step.args, **step.kwargs)
            right = self.alterations or _alike(output, step.run())
        except (TypeError, ValueError, RuntimeError):
            if self.alterations:
                raise
            right = False
        if right:
            return output
        self.whole.add(step.name)
        return None


def _kept(step: Step) -> Step:
    """Return the step with copied arguments, in case one is changed in place later."""
    return dataclasses.replace(step, args=copied(step.args), kwargs=copied(dict(step.kwargs)))


def _alike(output: Any, wanted: Any) -> bool:
    a, b = tensors_of(output), tensors_of(wanted)
    return len(a) == len(b) and all(
        x.shape == y.shape and torch.allclose(x, y, rtol=1e-9, atol=1e-12, equal_nan=True)
        for x, y in zip(a, b, strict=True)
    )


WRITTEN_OUT: dict[str, Callable[..., Any]] = {"multi_head_attention_forward": multi_head_attention}
"""Names of fused functions, and their written-out implementations."""

_TORCH, _HERE = str(Path(torch.__file__).parent), str(Path(__file__).parent)


def _place() -> Place:
    """Return the innermost place outside PyTorch; line 0 if it is in this package (PyTorch's own module)."""
    frame = sys._getframe(2)
    while frame.f_code.co_filename.startswith(_TORCH) and frame.f_back is not None:
        frame = frame.f_back
    inside = not frame.f_code.co_filename.startswith(_HERE)
    return frame.f_code.co_filename, frame.f_lineno if inside else 0, frame.f_lasti


def tensors_of(tree: Any) -> list[torch.Tensor]:
    """Return the tensors in a tree, in order."""
    return [leaf for leaf in pytree.tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


def copied(tree: Any) -> Any:
    """Copy the tensors of a tree, so that in-place operations cannot change the recording."""
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, tree)
