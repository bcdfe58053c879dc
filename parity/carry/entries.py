"""The ledger of a pair of models: which tensor, or part of a tensor, of the one is which of the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from parity.carry.rules import Box, LeafRule, box_shape, slices


@dataclasses.dataclass(frozen=True)
class Entry:
    """A pair of tensors with the same values; may be a part of a tensor on either side, or one layer of a stack.

    `layer` is the flax layer type that owns the tensor, `axes` the permutation PyTorch -> JAX, `part` (i, n) the i-th
    of n parts of PyTorch's tensor, `index` the position in flax's stacked tensor, `flip` the (flax) axes to reverse;
    `split`, `out_of`, `into` and `added` as in `LeafRule` (`into` without the axis of `index`).
    """

    torch: str
    jax: str
    layer: str
    axes: tuple[int, ...] | None
    torch_shape: tuple[int, ...]
    jax_shape: tuple[int, ...]
    dtype: str
    part: tuple[int, int] = (0, 1)
    index: int | None = None
    flip: tuple[int, ...] = ()
    split: tuple[int, ...] = ()
    out_of: tuple[tuple[int, int, int], ...] = ()
    into: tuple[tuple[int, int, int], ...] = ()
    added: bool = False

    @classmethod
    def of(
        cls,
        rule: LeafRule,
        layer: str,
        torch_shape: tuple[int, ...],
        jax_shape: tuple[int, ...],
        dtype: str,
        index: int | None = None,
    ) -> Entry:
        """Make the entry of a rule whose names are whole."""
        moved = rule.axes is not None and rule.axes != tuple(range(len(rule.axes)))
        return cls(
            rule.torch,
            rule.jax,
            layer,
            rule.axes if moved else None,
            torch_shape,
            jax_shape,
            dtype,
            rule.part,
            index,
            rule.flip,
            rule.split,
            rule.out_of,
            rule.into,
            rule.added,
        )

    @property
    def rule(self) -> LeafRule:
        return LeafRule(self.torch, self.jax, self.axes, self.part, True, self.flip, self.split, self.out_of, self.into)

    @property
    def torch_box(self) -> Box:
        """The part of PyTorch's tensor."""
        return self.rule.box(self.torch_shape)

    @property
    def jax_box(self) -> Box:
        """The part of the flax tensor."""
        if self.index is None:
            return self.into
        return (0, self.index, self.index + 1), *((axis + 1, start, stop) for axis, start, stop in self.into)

    @property
    def is_whole(self) -> bool:
        """Whether the entry covers a whole tensor on both sides."""
        return not self.torch_box and not self.jax_box and not self.added

    def in_jax(self, array: np.ndarray) -> np.ndarray:
        """Return the part of a whole flax tensor that belongs to this entry, as a view."""
        index: tuple[Any, ...] = slices(self.into) if self.index is None else (self.index, *slices(self.into))
        return array[(*index, ...)]

    def to_jax(self, array: np.ndarray) -> np.ndarray:
        """Convert PyTorch's whole tensor to the values of this entry in flax's layout."""
        shape = self.jax_shape if self.index is None else self.jax_shape[1:]
        return self.rule.to_jax(array, box_shape(shape, self.into))

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Convert the whole flax tensor to the values of this entry in PyTorch's layout."""
        return self.rule.to_torch(self.in_jax(array), self.torch_shape)


@dataclasses.dataclass(frozen=True)
class Ledger:
    """All tensors of both models, each once: `entries` are the pairs, the others deliberately have no partner.

    `tied` lists PyTorch names whose tensor is an entry under another name; `notes` lists what was inferred rather than
    given by rules.
    """

    entries: tuple[Entry, ...]
    torch_only: tuple[str, ...] = ()
    jax_only: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __str__(self) -> str:
        lines = [
            f"{e.torch} {list(e.torch_shape)} <-> {e.jax} {list(e.jax_shape)}"
            + (f" transposed {e.axes}" if e.axes else "")
            + (f" split {e.split}" if e.split else "")
            + (f" flipped {e.flip}" if e.flip else "")
            + (f" part {e.part[0] + 1} of {e.part[1]}" if e.part[1] > 1 else "")
            + (f" from {_brackets(e.torch_shape, e.out_of)}" if e.out_of else "")
            + (f" layer {e.index}" if e.index is not None else "")
            + (f" into {_brackets(e.jax_shape[e.index is not None :], e.into)}" if e.into else "")
            + (" added" if e.added else "")
            + f" {e.dtype}"
            for e in self.entries
        ]
        lines += [f"{name} only in PyTorch" for name in self.torch_only]
        lines += [f"{name} only in JAX" for name in self.jax_only]
        return "\n".join([*lines, *self.notes])


def _brackets(shape: tuple[int, ...], box: Box) -> str:
    """Write a box as Python does: [:, 0:16]."""
    bounds = {axis: f"{start}:{stop}" for axis, start, stop in box}
    return f"[{', '.join(bounds.get(axis, ':') for axis in range(len(shape)))}]"
