"""Exceptions that end a training run."""

from __future__ import annotations


class TrainingDivergedError(RuntimeError):
    """Raised when the loss or gradient is no longer finite.

    Attributes:
        step: First step with a non-finite value, from 1.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step
