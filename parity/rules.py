"""How a PyTorch layer's tensors are laid out in Flax: one table of two-way rules by layer type.

A rule is a permutation of axes, so it loses nothing and has an inverse by construction.
Layouts: O out, I in (per group), K K1 K2 K3 spatial; PyTorch convolutions are O I K.., flax's K.. I O.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
from flax import nnx


@dataclasses.dataclass(frozen=True)
class LeafRule:
    """`torch` and `jax` name the same tensor on both sides; jax = transpose(torch, axes), None for as it is."""

    torch: str
    jax: str
    axes: tuple[int, ...] | None = None

    def to_jax(self, array: np.ndarray) -> np.ndarray:
        return array if self.axes is None else np.ascontiguousarray(array.transpose(self.axes))

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        return array if self.axes is None else np.ascontiguousarray(array.transpose(np.argsort(self.axes)))

    def jax_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape in JAX of a tensor with `shape` in PyTorch; () if the rank cannot be permuted."""
        if self.axes is None:
            return tuple(shape)
        return tuple(shape[axis] for axis in self.axes) if len(shape) == len(self.axes) else ()


def _conv_axes(kernel_size: object) -> tuple[int, ...]:
    """Axes of O I K.. -> K.. I O for a convolution of this kernel size."""
    spatial = len(kernel_size) if isinstance(kernel_size, Sequence) else 1
    return (*range(2, 2 + spatial), 1, 0)


def layer_rules(module: nnx.Module) -> tuple[LeafRule, ...]:
    """The rules of a flax layer type (subclasses included), () for a module that owns its tensors by bare names."""
    match module:
        case nnx.Linear():
            return LeafRule("weight", "kernel", (1, 0)), LeafRule("bias", "bias")
        case nnx.Conv():
            return LeafRule("weight", "kernel", _conv_axes(module.kernel_size)), LeafRule("bias", "bias")
        case nnx.BatchNorm():
            return (
                LeafRule("weight", "scale"),
                LeafRule("bias", "bias"),
                LeafRule("running_mean", "mean"),
                LeafRule("running_var", "var"),
            )
        case nnx.LayerNorm() | nnx.GroupNorm() | nnx.RMSNorm():
            return LeafRule("weight", "scale"), LeafRule("bias", "bias")
        case nnx.Embed():
            return (LeafRule("weight", "embedding"),)
        case _:
            return ()


TORCH_ONLY = ("*num_batches_tracked",)
"""Tensors without a partner in flax: the batch count of BatchNorm, which PyTorch uses only if momentum is None."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a pair of models needs besides the built-in rules. Patterns are shell-style (`*`), names dotted paths.

    Attributes:
        rename: regular expression -> replacement, applied in order to PyTorch module paths to get the flax paths.
        leaves: flax layer type -> its leaf rules, before the built-in table.
        torch_only, jax_only: tensors that have no partner on purpose; the ledger lists them.
        layouts: pattern of module names -> axes that turn PyTorch's activation into JAX's; None for as it is.
        unpaired: modules that may lack a partner although they hold parameters.
    """

    rename: Mapping[str, str] = dataclasses.field(default_factory=dict)
    leaves: Mapping[type[nnx.Module], Sequence[LeafRule]] = dataclasses.field(default_factory=dict)
    torch_only: Sequence[str] = ()
    jax_only: Sequence[str] = ()
    layouts: Mapping[str, tuple[int, ...] | None] = dataclasses.field(default_factory=dict)
    unpaired: Sequence[str] = ()

    def jax_path(self, torch_path: str) -> str:
        """The flax path of a PyTorch module path."""
        for pattern, replacement in self.rename.items():
            torch_path = re.sub(pattern, replacement, torch_path)
        return torch_path

    def leaf_rules(self, module: nnx.Module) -> tuple[LeafRule, ...]:
        for layer_type, rules in self.leaves.items():
            if isinstance(module, layer_type):
                return tuple(rules)
        return layer_rules(module)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether `name` fits one of the shell-style `patterns`."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
