"""Decide whether a matrix is transposed for `nnx.Linear`, by the type of PyTorch's layer and not by shape alone.

`torch.nn.Linear` stores (out, in), flax (in, out). Other layers may store either: the shape of a non-square matrix
decides, and the decision holds for all layers of that type (e.g. GPT-2's Conv1D, whose projection is square).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch

from parity.carry.rules import LeafRule

IN_OUT = ("Conv1D",)
"""Layer types that store (in, out): the one of `transformers`."""


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A PyTorch matrix that a rule transposes, the module that holds it, and the shape of flax's matrix."""

    name: str
    module: torch.nn.Module | None
    shape: tuple[int, ...]
    jax_shape: tuple[int, ...]

    @property
    def type(self) -> str:
        """Type name of the module; for TorchScript modules, the original one."""
        return str(getattr(self.module, "original_name", None) or type(self.module).__name__)

    @property
    def is_linear(self) -> bool:
        """Whether the layer is a PyTorch linear layer, or unknown."""
        known = self.module is None or isinstance(self.module, torch.nn.Linear | torch.nn.Bilinear)
        return known or self.type in ("Linear", "NonDynamicallyQuantizableLinear")

    @property
    def fits(self) -> set[bool]:
        """Orientations in which the shape equals flax's: transposed (True), unchanged (False)."""
        choices = {True: self.shape[::-1], False: self.shape}
        return {transposed for transposed, shape in choices.items() if shape == self.jax_shape}


def oriented(matrices: Iterable[Matrix]) -> tuple[dict[str, bool], list[str]]:
    """Decide which matrices of layers other than `nn.Linear` are transposed, by name.

    Returns:
        Whether each matrix is transposed, and notes on the matrices for which this was assumed.
    """
    others = [matrix for matrix in matrices if not matrix.is_linear and matrix.fits]
    votes: dict[str, set[bool]] = {}
    for matrix in others:
        if len(matrix.fits) == 1:
            votes.setdefault(matrix.type, set()).update(matrix.fits)
    found, notes = {}, []
    for matrix in others:
        known = matrix.fits if len(matrix.fits) == 1 else votes.get(matrix.type, set())
        if len(known) != 1 and matrix.type in IN_OUT:
            known = {False}
        if len(known) == 1:
            found[matrix.name] = next(iter(known))
            continue
        found[matrix.name] = True
        rows = list(matrix.shape)
        notes.append(
            f"{matrix.name} {rows} of {matrix.type} is square: it was transposed, as of nn.Linear; if {matrix.type} "
            "keeps (in, out), write Rules(leaves={nnx.Linear: (LeafRule('weight', 'kernel'),)})"
        )
    return found, notes


def is_transposing(rule: LeafRule) -> bool:
    """Return whether `rule` is the built-in rule of `nnx.Linear`."""
    return rule == LeafRule("weight", "kernel", (1, 0))
