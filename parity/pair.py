"""A pair of models with their inputs: what `python -m parity check NAME` makes of a name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from flax import nnx


@dataclasses.dataclass(frozen=True)
class Pair:
    """A PyTorch model, its JAX port with the same weights, and the inputs to compare them on.

    Attributes:
        torch_model, jax_model, inputs: As for `parity.check`.
        options: Further arguments of `parity.check`, such as `rules`, `loss` or `gates`.
    """

    torch_model: torch.nn.Module
    jax_model: nnx.Module
    inputs: Any
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
