"""Conversion rules between the tensor layouts of PyTorch and Flax: a table of invertible rules by layer type.

A rule splits, permutes, flips and reshapes, so it is lossless and invertible by construction.
Layouts: O out, I in (per group), K K1 K2 K3 spatial; PyTorch convolutions are O I K.., flax's K.. I O.
PyTorch's transposed convolutions are I O K..; flax's are K.. I O, flipped, or (`transpose_kernel`) K.. O I, not
flipped.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from flax import nnx

from parity.carry.program import Program

Box = tuple[tuple[int, int, int], ...]
"""A contiguous part of a tensor: (axis, start, stop) for each axis that is not taken whole."""


def slices(box: Box) -> tuple[slice, ...]:
    """Return the index expression of a box."""
    bounds = {axis: slice(start, stop) for axis, start, stop in box}
    return tuple(bounds.get(axis, slice(None)) for axis in range(max(bounds, default=-1) + 1))


def box_shape(shape: Sequence[int], box: Box) -> tuple[int, ...]:
    """Return the shape of the part `box` of a tensor of `shape`."""
    lengths = {axis: stop - start for axis, start, stop in box}
    return tuple(lengths.get(axis, size) for axis, size in enumerate(shape))


def is_inside(shape: Sequence[int], box: Box) -> bool:
    """Return whether a tensor of `shape` has the part `box`."""
    return all(axis < len(shape) and 0 <= start < stop <= shape[axis] for axis, start, stop in box)


def overlap(first: Box, second: Box) -> bool:
    """Return whether two boxes of one tensor have an element in common."""
    bounds = {axis: (start, stop) for axis, start, stop in first}
    return all(
        axis not in bounds or (start < bounds[axis][1] and bounds[axis][0] < stop) for axis, start, stop in second
    )


@dataclasses.dataclass(frozen=True, repr=False)
class LeafRule:
    """A conversion rule between the tensors `torch` and `jax` (names relative to the layer).

    jax[into] = reshape(flip(transpose(reshape(part of torch; split); axes); flip)). Every step is optional. If several
    rules have the same names, they are alternatives.

    Attributes:
        axes: The permutation; None for no permutation.
        part: (i, n): the i-th of n equal parts of PyTorch's tensor along its first axis; (0, 1) is the whole tensor.
        reshape: Whether the result is reshaped to the shape of the flax tensor.
        flip: The axes, in flax's order, to reverse.
        split: A shape that (the part of) PyTorch's tensor is reshaped to first, to split axes.
        out_of, into: The part of PyTorch's tensor that is read and of the flax tensor that is filled, where it is not
            all of it: (axis, start, stop) for each axis that is cut.
        layer: Of alternatives, those with `layer` are for PyTorch's layer types that start with it.
        added: Whether PyTorch adds this tensor to the one that corresponds to flax's, so that it has to be zero.
    """

    torch: str
    jax: str
    axes: tuple[int, ...] | None = None
    part: tuple[int, int] = (0, 1)
    reshape: bool = False
    flip: tuple[int, ...] = ()
    split: tuple[int, ...] = ()
    out_of: Box = ()
    into: Box = ()
    layer: str = ""
    added: bool = False

    def __repr__(self) -> str:
        """Return the call that makes this rule, without defaults."""
        words = [_source(self.torch), _source(self.jax)]
        for field in dataclasses.fields(self)[2:]:
            value = getattr(self, field.name)
            if value != field.default:
                words.append(repr(value) if field.name == "axes" else f"{field.name}={value!r}")
        return f"LeafRule({', '.join(words)})"

    def box(self, shape: Sequence[int]) -> Box:
        """Return the part of a PyTorch tensor of `shape` that is read."""
        index, parts = self.part
        if parts == 1:
            return self.out_of
        rows = shape[0] // parts
        return (0, index * rows, (index + 1) * rows), *self.out_of

    def to_jax(self, array: np.ndarray, shape: Sequence[int] | None = None) -> np.ndarray:
        """Convert PyTorch's tensor to (this rule's part of) flax's, reshaped to `shape` if the rule reshapes."""
        array = array[slices(self.box(array.shape))]
        if self.split:
            array = array.reshape(self.split)
        if self.axes is not None:
            array = array.transpose(self.axes)
        array = np.flip(array, self.flip)
        return _in_order(array if shape is None or not self.reshape else array.reshape(shape))

    def to_torch(self, array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """Convert (this rule's part of) the flax tensor to PyTorch's tensor (of `shape`), or to its part of it."""
        moved = self._moved(shape)
        array = np.flip(array.reshape(moved), self.flip)
        array = array if self.axes is None else array.transpose(np.argsort(self.axes))
        return _in_order(array.reshape(box_shape(shape, self.box(shape))) if self.split else array)

    def _moved(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of this rule's part of a PyTorch tensor of `shape`, with its axes in flax's order."""
        own = self.split or box_shape(shape, self.box(shape))
        return own if self.axes is None else tuple(own[axis] for axis in self.axes)

    def fits(self, shape: Sequence[int], jax_shape: Sequence[int]) -> bool:
        """Return whether a PyTorch tensor of `shape` converts to (a part of) a flax tensor of `jax_shape`."""
        rank = len(self.split or shape)
        if self.axes is not None and len(self.axes) != rank:
            return False
        if any(axis >= rank for axis in self.flip):
            return False
        if self.part[1] > 1 and (not shape or shape[0] % self.part[1]):
            return False
        if not is_inside(shape, self.out_of) or not is_inside(jax_shape, self.into):
            return False
        if self.split and math.prod(self.split) != math.prod(box_shape(shape, self.box(shape))):
            return False
        moved, filled = self._moved(shape), box_shape(jax_shape, self.into)
        if self.reshape:
            return math.prod(moved) == math.prod(filled)
        return moved == filled


def _in_order(array: np.ndarray) -> np.ndarray:
    """Return `array` in C order; `np.ascontiguousarray` would turn a scalar into a vector."""
    return np.asarray(array, order="C")


def _conv_axes(kernel_size: Sequence[int]) -> tuple[int, ...]:
    """Return the permutation O I K.. -> K.. I O for a convolution with this kernel size."""
    return (*range(2, 2 + len(kernel_size)), 1, 0)


def _transposed_conv_rule(module: nnx.ConvTranspose) -> LeafRule:
    """Return the rule of a transposed convolution.

    `torch.nn.ConvTranspose` is the gradient of a convolution, i.e. `lax.conv_transpose` with a flipped kernel.
    """
    spatial = tuple(range(len(module.kernel_size)))
    if module.transpose_kernel:
        return LeafRule("weight", "kernel", _conv_axes(module.kernel_size))
    return LeafRule("weight", "kernel", (*range(2, 2 + len(spatial)), 0, 1), flip=spatial)


def layer_rules(module: nnx.Module) -> tuple[LeafRule, ...]:
    """Return the rules of a flax layer type (including subclasses); tensors equal on both sides need none."""
    match module:
        case nnx.Linear():
            return (LeafRule("weight", "kernel", (1, 0)),)
        case nnx.LinearGeneral():
            return LeafRule("weight", "kernel", (1, 0), reshape=True), LeafRule("bias", "bias", reshape=True)
        case nnx.MultiHeadAttention():
            return _attention_rules()
        case nnx.Conv():
            return (LeafRule("weight", "kernel", _conv_axes(module.kernel_size)),)
        case nnx.ConvTranspose():
            return (_transposed_conv_rule(module),)
        case nnx.BatchNorm():
            return LeafRule("weight", "scale"), LeafRule("running_mean", "mean"), LeafRule("running_var", "var")
        case nnx.LayerNorm() | nnx.GroupNorm() | nnx.InstanceNorm() | nnx.RMSNorm():
            return (LeafRule("weight", "scale"),)
        case nnx.Embed():
            return (LeafRule("weight", "embedding"),)
        case nnx.PReLU():
            return (LeafRule("weight", "negative_slope", reshape=True),)
        case nnx.SpectralNorm():
            return _spectral_rules(module.layer_instance)
        case nnx.LSTMCell():
            return gate_rules(("ii", "if_", "ig", "io"), ("hi", "hf", "hg", "ho"), biased="hh")
        case nnx.OptimizedLSTMCell():
            return gate_rules(("dense_i",), ("dense_h",), biased="hh")
        case nnx.SimpleCell():
            return gate_rules(("dense_i",), ("dense_h",), biased="ih")
        case _:
            return ()


def _attention_rules() -> tuple[LeafRule, ...]:
    """Return the rules that split the fused q, k, v of torch.nn.MultiheadAttention into flax's three projections."""
    fused = [
        rule
        for i, name in enumerate(("query", "key", "value"))
        for rule in (
            LeafRule("in_proj_weight", f"{name}.kernel", (1, 0), (i, 3), reshape=True),
            LeafRule("in_proj_bias", f"{name}.bias", None, (i, 3), reshape=True),
        )
    ]
    out = LeafRule("out_proj.weight", "out.kernel", (1, 0), reshape=True), LeafRule("out_proj.bias", "out.bias")
    return (*fused, *out)


def _spectral_rules(layer: nnx.Module) -> tuple[LeafRule, ...]:
    """Return the rules of a layer inside `nnx.SpectralNorm`, whose names in PyTorch are those of the layer alone."""
    rules = (*layer_rules(layer), LeafRule("bias", "bias"))
    inside = {rule.jax: dataclasses.replace(rule, jax=f"layer_instance.{rule.jax}") for rule in reversed(rules)}
    return (*inside.values(), LeafRule("weight_u", "batch_stats.('kernel', 'u')", reshape=True))


ALONE = ("*.batch_stats.('*', 'sigma')",)
"""Tensors of flax without a partner in PyTorch: the norm that `nnx.SpectralNorm` computed last, which is not read."""


def gate_rules(inputs: Sequence[str], hidden: Sequence[str], *, biased: str) -> tuple[LeafRule, ...]:
    """Return the rules of a recurrent cell of flax with one layer for each gate, or one for all gates.

    PyTorch's cell has one tensor for all gates, and two biases that are added, where flax's has one.

    Args:
        inputs, hidden: The layers of the input and of the hidden state, in the order of PyTorch's gates.
        biased: Which of them hold the bias, `"ih"` or `"hh"`.
    """
    sides = {"ih": inputs, "hh": hidden}
    parts = [(i, len(inputs)) for i in range(len(inputs))]
    held = list(zip(sides[biased], parts, strict=True))
    return (
        *(
            LeafRule(f"weight_{side}", f"{layer}.kernel", (1, 0), part, reshape=len(parts) > 1)
            for side, layers in sides.items()
            for layer, part in zip(layers, parts, strict=True)
        ),
        *(LeafRule("bias_ih", f"{layer}.bias", None, part, reshape=True) for layer, part in held),
        *(LeafRule("bias_hh", f"{layer}.bias", None, part, reshape=True, added=True) for layer, part in held),
    )


TORCH_ONLY = ("num_batches_tracked", "*.num_batches_tracked")
"""Tensors without a partner in flax: the batch count of BatchNorm, which PyTorch uses only if momentum is None."""


@dataclasses.dataclass(frozen=True, repr=False)
class Rules:
    """Options for a pair of models beyond the built-in rules. Patterns are shell-style (`*`), names are dotted paths.

    `print(rules)` shows the lines of Python that make them.

    Attributes:
        stacked: Maps the PyTorch path of a list of identical layers to the flax path of one layer whose tensors have a
            leading axis for the position in the list (as for `nnx.scan`). The stack is compared as a whole.
        rename: Maps regular expressions to replacements, applied in order to PyTorch module paths to get flax paths.
        leaves: Maps flax layer types (of an Equinox model, its layer types) to their leaf rules, which take precedence
            over the built-in table. For `parity.adapters.Program`, the names in the rules are whole.
        torch_only, jax_only: Tensors that deliberately have no partner; the ledger lists them.
        layouts: Maps patterns of module names to the axes that permute PyTorch's activation to JAX's; None for no
            permutation. "" is the model itself, "input 1" and "output 0" are its inputs and outputs.
        unpaired: Modules that may lack a partner although they have parameters.
        tensors: Rules of single tensors, which take precedence over all others: `torch` is the whole name of a PyTorch
            tensor, or a regular expression that matches whole names, and `jax` the whole name of the flax tensor, or a
            replacement (`r"\1"`). Inside a stack, PyTorch's name is the one that `stacked` gives.
    """

    stacked: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rename: Mapping[str, str] = dataclasses.field(default_factory=dict)
    leaves: Mapping[type, Sequence[LeafRule]] = dataclasses.field(default_factory=dict)
    torch_only: Sequence[str] = ()
    jax_only: Sequence[str] = ()
    layouts: Mapping[str, tuple[int, ...] | None] = dataclasses.field(default_factory=dict)
    unpaired: Sequence[str] = ()
    tensors: Sequence[LeafRule] = ()

    def __repr__(self) -> str:
        """Return the call that makes these rules, without defaults."""
        return self._text("", ", ")

    def __str__(self) -> str:
        """Return `repr(self)` with one line for each name and rule."""
        return self._text("\n    ", ",\n        ")

    def _text(self, indent: str, between: str) -> str:
        words = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not value:
                continue
            named = isinstance(value, Mapping)
            items = [f"{_source(k)}: {_source(v)}" for k, v in value.items()] if named else [*map(_source, value)]
            inner = between.join(items)
            if indent and len(items) > 1:
                inner = f"{between[1:]}{inner},{indent}"
            words.append(f"{field.name}={{{inner}}}" if named else f"{field.name}=[{inner}]")
        if not indent or len(words) + sum(word.count("\n") for word in words) < 2:
            return f"Rules({', '.join(words)})"
        return f"Rules({''.join(f'{indent}{word},' for word in words)}\n)"

    def tensor_rules(self, torch_name: str) -> list[LeafRule]:
        """Return the rules in `tensors` for one PyTorch tensor, with the names filled in; an exact name comes first."""
        exact = [rule for rule in self.tensors if rule.torch == torch_name]
        if exact:
            return exact
        found = [(rule, re.fullmatch(rule.torch, torch_name)) for rule in self.tensors]
        return [
            dataclasses.replace(rule, torch=torch_name, jax=match.expand(rule.jax)) for rule, match in found if match
        ]

    def jax_path(self, torch_path: str) -> str:
        """Return the flax path of a PyTorch module path."""
        for pattern, replacement in self.rename.items():
            torch_path = re.sub(pattern, replacement, torch_path)
        return torch_path.strip(".")

    def stack_index(self, torch_name: str) -> tuple[str, int | None]:
        """Split `blocks.3.attn.weight` into (`blocks.attn.weight`, 3) if `blocks` is stacked; else (name, None)."""
        for torch_path, jax_path in self.stacked.items():
            found = re.fullmatch(rf"{re.escape(torch_path)}\.([0-9]+)(?:\.(.*))?", torch_name, re.DOTALL)
            if found:
                rest = f".{found[2]}" if found[2] else ""
                return f"{jax_path}{rest}", int(found[1])
        return torch_name, None

    def in_stack(self, path: str, *, torch_side: bool) -> bool:
        """Return whether a module is inside a stack (on PyTorch's or on flax's side)."""
        roots = self.stacked.keys() if torch_side else self.stacked.values()
        return any(path.startswith(f"{root}.") or (path == root and not torch_side) for root in roots)

    def leaf_rules(self, module: nnx.Module) -> tuple[LeafRule, ...]:
        if isinstance(module, Program):
            told = tuple(module.table.told(self.leaves))
            named = {rule.jax for rule in told}
            return (*told, *(rule for rule in module.table.rules if rule.jax not in named))
        for layer_type, rules in self.leaves.items():
            if isinstance(module, layer_type):
                return tuple(rules)
        return layer_rules(module)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Return whether `name` matches one of the shell-style `patterns`."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _source(value: Any) -> str:
    """Return Python source of a part of `Rules`; a layer type of flax is written as `nnx.Linear`."""
    if isinstance(value, type):
        place = "nnx" if value.__module__.startswith("flax.nnx") else value.__module__
        return f"{place}.{value.__qualname__}"
    if isinstance(value, str) and value.isprintable() and '"' not in value and not value.endswith("\\"):
        return f'r"{value}"' if "\\" in value else f'"{value}"'
    if isinstance(value, list):
        return f"[{', '.join(map(_source, value))}]"
    return repr(value)
