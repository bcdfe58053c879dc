"""Which call of a JAX module answers to which call of a PyTorch module, and in what layout."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np
import torch
from flax import nnx

from parity.align import Axes, closest_axes, fitting_axes
from parity.capture import Call, Key, torch_hooks
from parity.rules import Rules, matches
from parity.runs import JaxSide, TorchSide


@dataclasses.dataclass(frozen=True)
class Pair:
    """One call on both sides, with the layouts of its tensors.

    `inputs` says which of PyTorch's tensors answer to JAX's, one by one; None: they cannot be matched.
    """

    torch: Key
    jax: Key
    module: torch.nn.Module
    inputs: tuple[int, ...] | None
    input_axes: tuple[Axes, ...]
    output_axes: tuple[Axes, ...]

    @property
    def name(self) -> str:
        """The module's path, and which of its calls it is if there are several."""
        path, index = self.torch
        return path if index == 0 else f"{path}#{index + 1}"

    def reference(self, call: Call) -> Call:
        """PyTorch's call in JAX's layout."""
        given = call.inputs or []
        inputs = None if self.inputs is None else aligned([given[i] for i in self.inputs], self.input_axes)
        return Call(inputs, aligned(call.outputs, self.output_axes))


@dataclasses.dataclass(frozen=True)
class Pairing:
    """All pairs of calls, what has no partner and needs none, and the shapes of PyTorch's calls."""

    pairs: tuple[Pair, ...]
    unpaired: tuple[str, ...]
    shapes: Mapping[Key, Shapes]

    @property
    def root(self) -> Pair:
        """The model's own call.

        Raises:
            ValueError: the model itself was not called on both sides.
        """
        return next(pair for pair in self.pairs if pair.torch == ("", 0))

    def sections(self, limit: float) -> Iterator[list[Pair]]:
        """The pairs in order, in runs whose tensors take at most `limit` bytes in float64 (or of one pair)."""
        section: list[Pair] = []
        size = 0
        for pair in self.pairs:
            shapes = self.shapes[pair.torch]
            needed = 8 * sum(math.prod(shape) for shape in (*shapes.inputs, *shapes.outputs))
            if section and size + needed > limit:
                yield section
                section, size = [], 0
            section.append(pair)
            size += needed
        yield section

    def with_children(self, section: Sequence[Pair]) -> list[Pair]:
        """`section` and the calls right inside its modules: what a forced run needs to judge the section."""
        paths = {pair.torch[0] for pair in self.pairs}
        inside = {pair.torch[0] for pair in section}
        return [pair for pair in self.pairs if pair in section or _parent(pair.torch[0], paths) in inside]


def _parent(path: str, paths: Collection[str]) -> str | None:
    """The nearest module around `path` that is called itself."""
    while path:
        path = path.rpartition(".")[0]
        if path in paths:
            return path
    return None


def aligned(arrays: Sequence[np.ndarray], axes: Sequence[Axes]) -> list[np.ndarray]:
    """PyTorch's arrays in JAX's layout."""
    return [x if a is None else x.transpose(a) for x, a in zip(arrays, axes, strict=True)]


@dataclasses.dataclass(frozen=True)
class Shapes:
    """One call, shapes in place of tensors.

    `repeats` says of each input whether it is the very tensor before it, `floating` whether all outputs are numbers
    that have a gradient, `complex` of each output whether it is complex.
    """

    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    repeats: tuple[bool, ...] = ()
    floating: bool = True
    complex: tuple[bool, ...] = ()


Values = Callable[[Key, Key], tuple[Call, Call]]
"""The actual tensors of a call on both sides, for the rare layouts that shapes leave open."""


def torch_shapes(side: TorchSide, arrays: Sequence[np.ndarray]) -> dict[Key, Shapes]:
    """The calls of the PyTorch model with shapes for tensors; nothing else is kept."""
    found: dict[Key, Shapes] = {}
    given: dict[Key, tuple[tuple[tuple[int, ...], ...], tuple[bool, ...]]] = {}

    def before(key: Key, tensors: list[torch.Tensor]) -> None:
        repeats = tuple(i > 0 and tensor is tensors[i - 1] for i, tensor in enumerate(tensors))
        given[key] = (tuple(tuple(tensor.shape) for tensor in tensors), repeats)

    def after(key: Key, tensors: list[torch.Tensor]) -> None:
        inputs, repeats = given.pop(key)
        complex_ = tuple(tensor.is_complex() for tensor in tensors)
        floating = all(tensor.is_floating_point() or tensor.is_complex() for tensor in tensors)
        found[key] = Shapes(inputs, tuple(tuple(tensor.shape) for tensor in tensors), repeats, floating, complex_)

    with torch_hooks(side.model, before, after), torch.no_grad():
        side.model(*side.inputs(arrays))
    return found


def jax_shapes(side: JaxSide, arrays: Sequence[np.ndarray]) -> dict[Key, Shapes]:
    """The calls of the flax model with shapes for tensors; nothing is computed."""
    return {
        key: Shapes(tuple(x.shape for x in call.inputs or []), tuple(x.shape for x in call.outputs))
        for key, call in side.shapes(arrays).items()
    }


def pair_calls(
    torch_side: TorchSide,
    jax_side: JaxSide,
    arrays: Sequence[np.ndarray],
    rules: Rules,
    owner: torch.nn.Module | None = None,
) -> Pairing:
    """Pairs every call of both models, in the order in which PyTorch's calls return.

    The pairs refer to the modules of `owner` (the side's own by default), so that the side can be let go.

    Only modules that hold no tensors at all (an activation, a dropout, a reshape) may lack a partner: their work is
    judged with that of the module around them.

    Raises:
        ValueError: modules without a partner, or tensors whose shapes do not fit; all are listed.
    """
    ours, theirs = torch_shapes(torch_side, arrays), jax_shapes(jax_side, arrays)
    modules = dict((owner or torch_side.model).named_modules())
    problems, unpaired, pairs = [], [], []

    def values(key: Key, partner: Key) -> tuple[Call, Call]:
        return torch_side.forward(arrays, only={key})[key], jax_side.forward(arrays, only={partner})[partner]

    for key in ours:
        path, index = key
        partner = (rules.jax_path(path), index)
        if partner in theirs:
            try:
                pair = _pair(key, partner, modules[path], ours[key], theirs[partner], rules, values)
            except ValueError as error:
                problems.append(f"{_label(key)}: {error}")
                continue
            pairs.append(pair)
            if pair.inputs is None:
                unpaired.append(f"the inputs of {_label(key)}: other tensors come in on either side")
        elif _holds_own(modules[path]) and not (matches(path, rules.unpaired) or rules.in_stack(path, torch_side=True)):
            problems.append(f"{_label(key)} of PyTorch has no partner in JAX")
        else:
            unpaired.append(f"{_label(key)} of PyTorch")
    for key in theirs.keys() - {(rules.jax_path(path), index) for path, index in ours}:
        allowed = matches(key[0], rules.unpaired) or rules.in_stack(key[0], torch_side=False)
        allowed = allowed or _inside_fused(jax_side.model, key[0], rules)
        if _holds_tensors(jax_side.model, key[0]) and not allowed:
            problems.append(f"{_label(key)} of JAX has no partner in PyTorch")
        else:
            unpaired.append(f"{_label(key)} of JAX")
    if not pairs and not problems:
        problems.append("no module was called on both sides")
    if problems:
        raise ValueError(f"{len(problems)} modules cannot be compared: " + "; ".join(problems))
    return Pairing(tuple(pairs), tuple(sorted(unpaired)), ours)


def _inside_fused(model: nnx.Module, path: str, rules: Rules) -> bool:
    """Whether a module around this one speaks for its tensors (attention, for its projections): it is judged there."""
    around = (m for p, m in nnx.iter_modules(model) if path.startswith(".".join(map(str, p)) + "."))
    return any("." in rule.jax for module in around for rule in rules.leaf_rules(module))


def _holds_own(module: torch.nn.Module) -> bool:
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())


def _holds_tensors(model: nnx.Module, path: str) -> bool:
    module = next(m for p, m in nnx.iter_modules(model) if ".".join(map(str, p)) == path)
    return any(isinstance(node, nnx.Variable) for _, node in nnx.iter_graph(module))


def _label(key: Key) -> str:
    path, index = key
    return (path or "the model") + (f" (call {index + 1})" if index else "")


def _matching_inputs(ours: Shapes, count: int) -> tuple[int, ...] | None:
    """Which of our inputs answer to the other side's `count`, in order; None if it cannot be told.

    The same tensor given several times (q, k and v of self-attention) may be given once on the other side.
    """
    if len(ours.inputs) == count:
        return tuple(range(count))
    distinct = tuple(i for i, repeats in enumerate(ours.repeats) if not repeats)
    return distinct if len(distinct) == count else None


def _pair(
    key: Key, partner: Key, module: torch.nn.Module, ours: Shapes, theirs: Shapes, rules: Rules, values: Values
) -> Pair:
    if len(ours.outputs) != len(theirs.outputs):
        raise ValueError(f"{len(ours.outputs)} tensors come out in PyTorch, {len(theirs.outputs)} in JAX")
    rule = next((axes for pattern, axes in rules.layouts.items() if matches(key[0], [pattern])), "find")

    def candidates(a: tuple[int, ...], b: tuple[int, ...]) -> list[Axes]:
        if isinstance(rule, str):
            return fitting_axes(a, b, module)
        if (a if rule is None else tuple(a[axis] for axis in rule)) != b:
            raise ValueError(f"the layout rule {rule} does not turn {list(a)} into {list(b)}")
        return [rule]

    inputs = _matching_inputs(ours, len(theirs.inputs))
    given = () if inputs is None else tuple(ours.inputs[i] for i in inputs)
    taken = () if inputs is None else theirs.inputs
    input_choices = [candidates(a, b) for a, b in zip(given, taken, strict=True)]
    output_choices = [candidates(a, b) for a, b in zip(ours.outputs, theirs.outputs, strict=True)]
    if any(len(choices) > 1 for choices in (*input_choices, *output_choices)):
        torch_call, jax_call = values(key, partner)
        torch_inputs = [] if inputs is None else [(torch_call.inputs or [])[i] for i in inputs]
        input_choices = _decide(input_choices, torch_inputs, jax_call.inputs or [])
        output_choices = _decide(output_choices, torch_call.outputs, jax_call.outputs)
    return Pair(key, partner, module, inputs, tuple(c[0] for c in input_choices), tuple(c[0] for c in output_choices))


def _decide(choices: list[list[Axes]], ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> list[list[Axes]]:
    return [[closest_axes(c, a, b)] for c, a, b in zip(choices, ours, theirs, strict=False)]
