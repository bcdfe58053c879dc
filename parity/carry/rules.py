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

import numpy as np
from flax import nnx

from parity.carry.program import Program


@dataclasses.dataclass(frozen=True)
class LeafRule:
    """A conversion rule between the tensors `torch` and `jax` (names relative to the layer).

    jax = reshape(flip(transpose(part i of n of torch, split along its first axis; axes); flip)); `part` is (i, n),
    (0, 1) for the whole tensor; `axes` None means no permutation; `flip` lists the axes, in flax's order, to reverse;
    the reshape to the flax tensor's shape is applied only if `reshape`. If several rules have the same names, those
    with `layer` are for PyTorch's layer types that start with it. `added`: PyTorch adds this tensor to the one that
    corresponds to flax's, so it has to be zero.
    """

    torch: str
    jax: str
    axes: tuple[int, ...] | None = None
    part: tuple[int, int] = (0, 1)
    reshape: bool = False
    flip: tuple[int, ...] = ()
    layer: str = ""
    added: bool = False

    def to_jax(self, array: np.ndarray, shape: Sequence[int] | None = None) -> np.ndarray:
        """Convert PyTorch's tensor to flax's, reshaped to `shape` if the rule reshapes."""
        index, parts = self.part
        if parts > 1:
            array = array.reshape(parts, array.shape[0] // parts, *array.shape[1:])[index]
        if self.axes is not None:
            array = array.transpose(self.axes)
        array = np.flip(array, self.flip)
        return _in_order(array if shape is None or not self.reshape else array.reshape(shape))

    def to_torch(self, array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """Convert the flax tensor to PyTorch's tensor (of `shape`), or to this rule's part of it."""
        moved = self._moved(shape)
        array = np.flip(array.reshape(moved), self.flip)
        return _in_order(array if self.axes is None else array.transpose(np.argsort(self.axes)))

    def _moved(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of this rule's part of a PyTorch tensor of `shape`, with its axes in flax's order."""
        own = (shape[0] // self.part[1], *shape[1:]) if self.part[1] > 1 else tuple(shape)
        return own if self.axes is None else tuple(own[axis] for axis in self.axes)

    def fits(self, shape: Sequence[int], jax_shape: Sequence[int]) -> bool:
        """Return whether a PyTorch tensor of `shape` converts to a flax tensor of `jax_shape`."""
        if self.axes is not None and len(self.axes) != len(shape):
            return False
        if any(axis >= len(shape) for axis in self.flip):
            return False
        if self.part[1] > 1 and (not shape or shape[0] % self.part[1]):
            return False
        moved = self._moved(shape)
        if self.reshape:
            return math.prod(moved) == math.prod(jax_shape)
        return moved == tuple(jax_shape)


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


TORCH_ONLY = ("num_batches_tracked", "*.num_batches_tracked")
"""Tensors without a partner in flax: the batch count of BatchNorm, which PyTorch uses only if momentum is None."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """Options for a pair of models beyond the built-in rules. Patterns are shell-style (`*`), names are dotted paths.

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
    """

    stacked: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rename: Mapping[str, str] = dataclasses.field(default_factory=dict)
    leaves: Mapping[type, Sequence[LeafRule]] = dataclasses.field(default_factory=dict)
    torch_only: Sequence[str] = ()
    jax_only: Sequence[str] = ()
    layouts: Mapping[str, tuple[int, ...] | None] = dataclasses.field(default_factory=dict)
    unpaired: Sequence[str] = ()

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
