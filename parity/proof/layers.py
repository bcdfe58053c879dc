"""Judgement of the layers from their forward pass: by name as they were measured, else by their values; and causes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from parity.judgement.small_elements import is_small
from parity.measure.gates import Row
from parity.proof.stages import Proof, fails
from parity.report.findings import Cause
from parity.trace.stage import Traced


@dataclasses.dataclass(frozen=True)
class Layers:
    """The layers of a check.

    Attributes:
        rows: All measurements so far.
        causes: Causes of the failing modules, where they were found.
        traced: The comparison by values; None if the modules correspond by name.
    """

    rows: list[Row]
    causes: tuple[Cause, ...]
    traced: Traced | None

    def names(self, proof: Proof) -> tuple[tuple[str, str], ...]:
        """Return the name and PyTorch type of every compared module."""
        paired = ((pair.name, type(pair.module).__name__) for pair in proof.pairing.pairs)
        return (*(self.traced.layers if self.traced else ()), *paired)

    def unpaired(self, proof: Proof) -> tuple[str, ...]:
        """Return the modules that were not compared."""
        return (*proof.pairing.unpaired, *(self.traced.absent if self.traced else ()))


def judged_layers(
    proof: Proof, rows: Sequence[Row], forward: Sequence[Row], tell: Callable[[str], None] = lambda stage: None
) -> Layers:
    """Compare every module by its values if the modules do not correspond by name, and find causes.

    Args:
        rows: Measurements of the weights and the pairing.
        forward: Measurements of the forward pass.
        tell: Function called with a line of text before each stage.
    """
    causes: tuple[Cause, ...] = ()
    traced = None
    if proof.by_values:
        tell("every module, by its values")
        traced = proof.traced(forward)
        forward, causes = traced.merged(forward), traced.causes
        proof.notes.extend(traced.notes)
    found = [*rows, *forward]
    if fails(found, mode="forced") and not (traced and traced.located):
        tell("causes")
        causes = proof.causes([row for row in found if not is_small(row)])  # relF does not resolve small elements
    return Layers(found, causes, traced)


def derivatives_needed(proof: Proof, rows: Sequence[Row], gradients: Sequence[Row]) -> bool:
    """Return whether to compare the derivative of every module: a wrong gradient does not locate its cause.

    If the forward pass is right, the module derivatives do.
    """
    unsure = fails(gradients, precision="float64") or bool(proof.tables.apart)
    return unsure and not fails(rows, mode="forced")
