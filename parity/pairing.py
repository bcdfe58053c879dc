"""Which call of a JAX module answers to which call of a PyTorch module, and in what layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from flax import nnx

from parity.align import Axes, find_axes
from parity.capture import Call, Key
from parity.rules import Rules, matches
from parity.runs import Arrays


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


def aligned(arrays: Sequence[np.ndarray], axes: Sequence[Axes]) -> list[np.ndarray]:
    """PyTorch's arrays in JAX's layout."""
    return [x if a is None else x.transpose(a) for x, a in zip(arrays, axes, strict=True)]


def _matching_inputs(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> tuple[int, ...] | None:
    """Which of our tensors answer to theirs, in order; None if it cannot be told.

    The same tensor given several times (q, k and v of self-attention) may be given once on the other side.
    """
    if len(ours) == len(theirs):
        return tuple(range(len(ours)))
    distinct = [i for i, x in enumerate(ours) if i == 0 or not np.array_equal(x, ours[i - 1])]
    return tuple(distinct) if len(distinct) == len(theirs) else None


def pair_calls(
    torch_model: torch.nn.Module, jax_model: nnx.Module, torch_side: Arrays, jax_side: Arrays, rules: Rules
) -> tuple[list[Pair], list[str]]:
    """The pairs in the order in which PyTorch's calls return, and the names of what has no partner and needs none.

    Only modules that hold no tensors at all (an activation, a dropout, a reshape) may lack a partner: their work is
    judged with that of the module around them.

    Raises:
        ValueError: modules without a partner, or tensors whose shapes do not fit; all are listed.
    """
    modules = dict(torch_model.named_modules())
    problems, unpaired, pairs = [], [], []
    partners = {(rules.jax_path(path), index) for path, index in torch_side}
    for key in torch_side:
        path, index = key
        partner = (rules.jax_path(path), index)
        if partner in jax_side:
            try:
                pair = _pair(key, partner, modules[path], torch_side[key], jax_side[partner], rules)
            except ValueError as error:
                problems.append(f"{path or 'the model'}: {error}")
                continue
            pairs.append(pair)
            if pair.inputs is None:
                unpaired.append(f"the inputs of {_label(key)}: other tensors come in on either side")
        elif any(True for _ in modules[path].parameters()) and not matches(path, rules.unpaired):
            problems.append(f"{_label(key)} of PyTorch has no partner in JAX")
        else:
            unpaired.append(f"{_label(key)} of PyTorch")
    holders = {".".join(map(str, path)): module for path, module in nnx.iter_modules(jax_model)}
    for key in jax_side:
        if key in partners:
            continue
        holds = any(isinstance(node, nnx.Variable) for _, node in nnx.iter_graph(holders[key[0]]))
        if holds and not matches(key[0], rules.unpaired):
            problems.append(f"{_label(key)} of JAX has no partner in PyTorch")
        else:
            unpaired.append(f"{_label(key)} of JAX")
    if not pairs and not problems:
        problems.append("no module was called on both sides")
    if problems:
        raise ValueError(f"{len(problems)} modules cannot be compared: " + "; ".join(problems))
    return pairs, unpaired


def _label(key: Key) -> str:
    path, index = key
    return (path or "the model") + (f" (call {index + 1})" if index else "")


def _pair(key: Key, partner: Key, module: torch.nn.Module, ours: Call, theirs: Call, rules: Rules) -> Pair:
    if len(ours.outputs) != len(theirs.outputs):
        raise ValueError(f"{len(ours.outputs)} tensors come out in PyTorch, {len(theirs.outputs)} in JAX")
    rule = next((axes for pattern, axes in rules.layouts.items() if matches(key[0], [pattern])), "find")

    def axes_of(a: np.ndarray, b: np.ndarray) -> Axes:
        if isinstance(rule, str):
            return find_axes(a, b, module)
        if (a if rule is None else a.transpose(rule)).shape != b.shape:
            raise ValueError(f"the layout rule {rule} does not turn {list(a.shape)} into {list(b.shape)}")
        return rule

    outputs = tuple(axes_of(a, b) for a, b in zip(ours.outputs, theirs.outputs, strict=True))
    given, taken = ours.inputs or [], theirs.inputs or []
    inputs = _matching_inputs(given, taken)
    input_axes = () if inputs is None else tuple(axes_of(given[i], b) for i, b in zip(inputs, taken, strict=True))
    return Pair(key, partner, module, inputs, input_axes, outputs)
