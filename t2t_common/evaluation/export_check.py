"""Check that an exported model is numerically equivalent to the original model."""

from __future__ import annotations

import dataclasses

import numpy as np

BATCHES = (1, 3)
"""Batch sizes for checking an export; it is traced with a different one."""


class ExportError(Exception):
    """Raised when the exported model does not match the original model; nothing was written."""


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Relative Frobenius errors of the float32 logits of one batch.

    Attributes:
        images: Batch size.
        error: Error of the exported model relative to the model in float64.
        own: Error of the model in float32 relative to the model in float64.
        difference: Error of the exported model relative to the model in float32.
    """

    images: int
    error: float
    own: float
    difference: float

    @classmethod
    def of(cls, exported: np.ndarray, model: np.ndarray, oracle: np.ndarray) -> Agreement:
        """Compare the logits of the exported model, the model in float32 and the model in float64, all of one shape."""
        if not exported.shape == model.shape == oracle.shape:
            raise ExportError(f"the exported model gives {exported.shape} instead of {model.shape}")
        return cls(len(oracle), _distance(exported, oracle), _distance(model, oracle), _distance(exported, model))

    @property
    def limit(self) -> float:
        """Maximum `error`: three times the model's own float32 error, plus 2^-22."""
        return 3 * self.own + 2**-22

    @property
    def holds(self) -> bool:
        return self.error <= self.limit and self.difference <= 3e-6

    def __str__(self) -> str:
        return (
            f"batch {self.images}: error to float64 {self.error:.1e} (limit {self.limit:.1e}, the model's own "
            f"{self.own:.1e}), difference to the model {self.difference:.1e} (limit 3.0e-06)"
        )


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    b = b.astype(np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def check_agreement(found: list[Agreement]) -> list[Agreement]:
    """Return `found` if all agreements hold.

    Raises:
        ExportError: Some agreement does not hold; the message contains the errors.
    """
    if not all(one.holds for one in found):
        raise ExportError("the exported model differs from the model: " + "; ".join(map(str, found)))
    return found


def sample_images(shape: tuple[int, ...]) -> np.ndarray:
    """Return standard normal float32 images, as many as the largest size in BATCHES."""
    return np.random.RandomState(0).standard_normal((max(BATCHES), *shape)).astype(np.float32)
