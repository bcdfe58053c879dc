"""How a run ends that cannot go on."""

from __future__ import annotations


class TrainingDivergedError(RuntimeError):
    """The loss or the gradient is no longer finite.

    Attributes:
        step: the first such step, from 1.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step
