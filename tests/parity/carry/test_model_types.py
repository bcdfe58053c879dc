"""What may be compared, and what is said of everything else."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import haiku as hk
import jax
import numpy as np
import pytest
import torch
from flax import linen, nnx

import parity
from parity.carry.model_types import jax_subject, torch_subject

X = np.ones((2, 4))


class Dense(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        return linen.Dense(3)(x)


def torch_model() -> torch.nn.Module:
    return torch.nn.Linear(4, 3)


def jax_model() -> nnx.Module:
    return nnx.Linear(4, 3, rngs=nnx.Rngs(0))


def test_both_are_taken_out_of_what_runs_them() -> None:
    model = torch_model()
    for wrapped in (torch.nn.DataParallel(model), torch.compile(model, backend="eager")):
        assert torch_subject(wrapped) is model
    other = jax_model()
    assert jax_subject(nnx.jit(other)) is other


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Dense(), r"flax\.linen's Dense: write parity\.linen\(module, variables\)"),
        (eqx.nn.Linear(4, 3, key=jax.random.key(0)), r"equinox's Linear: write parity\.equinox\(model\)"),
        (hk.transform(Dense), r"haiku's Transformed: write parity\.haiku\(transformed, params\)"),
        (hk.transform_with_state(Dense), r"write parity\.haiku\(transformed, params, state\)"),
        (nnx.state(jax_model()), "nnx.update or nnx.merge"),
        (lambda x: x, r"write parity\.function\(f, params\)"),
        ({"kernel": np.ones(3)}, r"write parity\.function\(f, params\)"),
        (torch_model(), "is a torch.nn.Module too"),
        (3, "not an object of class int"),
    ],
)
def test_what_is_no_flax_model(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parity.check(torch_model(), model, X)


def test_weights_are_carried_between_models_of_both_frameworks_alone() -> None:
    with pytest.raises(ValueError, match=r"jax_model has to be a flax\.nnx\.Module, not flax\.linen's Dense: write"):
        parity.torch_to_jax(torch_model(), Dense())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"jax_model is a torch\.nn\.Module: it has to be"):
        parity.jax_to_torch(torch_model(), jax_model())  # type: ignore[arg-type]
    jitted = jax_model()
    assert len(parity.torch_to_jax(torch_model(), nnx.jit(jitted))) == 2  # type: ignore[arg-type]


def test_exchanged_arguments() -> None:
    for model in (jax_model(), parity.equinox(eqx.nn.Linear(4, 3, key=jax.random.key(0)))):
        with pytest.raises(ValueError, match="exchange the two arguments"):
            parity.check(model, torch_model(), X)  # type: ignore[arg-type]


def test_what_is_no_torch_model_or_has_no_shape_yet() -> None:
    with pytest.raises(ValueError, match=r"has to be a torch\.nn\.Module, not an object of class dict"):
        torch_subject({})
    with pytest.raises(ValueError, match="run the model once"):
        torch_subject(torch.nn.LazyLinear(3))


def test_an_adapter_is_taken_as_a_module() -> None:
    adapter = parity.equinox(eqx.nn.Linear(4, 3, key=jax.random.key(0)))
    assert isinstance(jax_subject(adapter), nnx.Module)
    assert len(parity.build_ledger(torch_model(), adapter)) == 2
