"""A shared module that both models call in another order."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import parity


class TorchShared(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        a, b = self.encoder(x), self.encoder(y)
        return a * b.exp()


class Shared(nnx.Module):
    """Calls y first; `wrong` exchanges the two."""

    def __init__(self, wrong: bool) -> None:
        self.encoder = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
        self.wrong = wrong

    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        b, a = self.encoder(y), self.encoder(x)
        return b * jnp.exp(a) if self.wrong else a * jnp.exp(b)


INPUTS = tuple(np.random.RandomState(i).standard_normal((2, 4)) for i in range(2))


def checked(wrong: bool) -> parity.Report:
    torch_model, jax_model = TorchShared(), Shared(wrong)
    parity.torch_to_jax(torch_model, jax_model)
    return parity.check(torch_model, jax_model, INPUTS)


def test_the_order_of_calls_is_no_difference() -> None:
    report = checked(wrong=False)
    assert report.passed, str(report)
    assert "called in another order in JAX, and paired by value: encoder" in report.notes


def test_exchanged_results_are_one() -> None:
    report = checked(wrong=True)
    assert not report.passed
    assert report.first_divergence == "the model"
