"""Whether an exported model still computes what the model computes."""

from __future__ import annotations

import dataclasses

import numpy as np

BATCHES = (1, 3)
"""Batch sizes with which an export is tried; it is traced with another one."""


class ExportError(Exception):
    """The exported model does not compute what the model computes; nothing was written."""


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Relative Frobenius errors of one batch's logits, all in float32.

    Attributes:
        images: size of the batch.
        error: of the exported model to the model in float64.
        own: of the model in float32 to itself in float64.
        difference: of the exported model to the model in float32.
    """

    images: int
    error: float
    own: float
    difference: float

    @classmethod
    def of(cls, exported: np.ndarray, model: np.ndarray, oracle: np.ndarray) -> Agreement:
        """From the logits of the exported model, of the model in float32 and in float64; all of one shape."""
        if not exported.shape == model.shape == oracle.shape:
            raise ExportError(f"the exported model gives {exported.shape} in place of {model.shape}")
        return cls(len(oracle), _distance(exported, oracle), _distance(model, oracle), _distance(exported, model))

    @property
    def limit(self) -> float:
        """What `error` may be: three times the model's own, and 2^-22."""
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


def demand(found: list[Agreement]) -> list[Agreement]:
    """`found`, if every one holds.

    Raises:
        ExportError: one does not; the message has the figures.
    """
    if not all(one.holds for one in found):
        raise ExportError("the exported model differs from the model: " + "; ".join(map(str, found)))
    return found


def sample_images(shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal images in float32, as many as the largest of BATCHES."""
    return np.random.RandomState(0).standard_normal((max(BATCHES), *shape)).astype(np.float32)
