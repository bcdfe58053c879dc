"""Whether a matrix is transposed on its way to `nnx.Linear`: the type of PyTorch's layer decides, not the shape alone.

`torch.nn.Linear` keeps (out, in), flax (in, out). Other layers may keep either: of a matrix that is not square the
shape tells, and what it tells of one layer goes for all of that type (GPT-2's Conv1D, whose projection is square).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch

from parity.carry.rules import LeafRule

IN_OUT = ("Conv1D",)
"""Types that keep (in, out): that of `transformers`."""


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A matrix of PyTorch that a rule transposes, the module that holds it, and the shape of flax's."""

    name: str
    module: torch.nn.Module | None
    shape: tuple[int, ...]
    jax_shape: tuple[int, ...]

    @property
    def type(self) -> str:
        """TorchScript's modules remember what they were."""
        return str(getattr(self.module, "original_name", None) or type(self.module).__name__)

    @property
    def is_linear(self) -> bool:
        """Whether the layer is PyTorch's own, or nothing is known of it."""
        known = self.module is None or isinstance(self.module, torch.nn.Linear | torch.nn.Bilinear)
        return known or self.type in ("Linear", "NonDynamicallyQuantizableLinear")

    @property
    def fits(self) -> set[bool]:
        """Whether transposed (True), and as it is (False), it has the shape of flax's."""
        choices = {True: self.shape[::-1], False: self.shape}
        return {transposed for transposed, shape in choices.items() if shape == self.jax_shape}


def oriented(matrices: Iterable[Matrix]) -> tuple[dict[str, bool], list[str]]:
    """Which of the matrices in layers that are no `nn.Linear` are transposed, by name, and what is to be told."""
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
    """Whether it is the built-in rule of `nnx.Linear`."""
    return rule == LeafRule("weight", "kernel", (1, 0))
