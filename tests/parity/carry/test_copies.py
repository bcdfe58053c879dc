"""Copies in another precision: complex stays complex, integers stay exact, whatever the modules keep beside tensors."""

from __future__ import annotations

import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx

from parity import LeafRule, Rules, check, torch_to_jax
from parity.carry.convert import jax_variables
from parity.carry.copies import as_dtype, torch_copy

x = np.random.RandomState(0).standard_normal((3, 6))


@pytest.mark.parametrize(("dtype", "wide"), [("float64", "complex128"), ("float32", "complex64")])
def test_complex_numbers_stay_complex(x64: None, dtype: str, wide: str):
    source, model = torch.nn.Linear(2, 2, dtype=torch.complex64), nnx.Module()
    model.z, model.w = nnx.Param(jnp.asarray([1 + 2j], jnp.complex64)), nnx.Param(jnp.ones(2, jnp.float32))
    model.dtype = jnp.complex64
    found = as_dtype(model, jnp.dtype(dtype))
    assert {str(v.dtype) for v in jax_variables(found).values()} == {dtype, wide}
    assert (found.z[...].item(), str(jnp.dtype(found.dtype))) == (1 + 2j, wide)
    copied = torch_copy(source, getattr(torch, dtype))
    assert str(copied.weight.dtype) == f"torch.{wide}"
    assert torch.equal(copied.weight.detach().to(torch.complex64), source.weight.detach())


def test_what_only_looks_like_a_precision_stays():
    class Odd(nnx.Module):
        def __init__(self) -> None:
            self.w = nnx.Param(jnp.ones(2))
            self.rate = nnx.Variable(0.5)
            self.param_dtype = jnp.int32

        @property
        def dtype(self) -> Any:
            return jnp.float32

    found = as_dtype(Odd(), jnp.bfloat16)
    assert (found.w.dtype, found.dtype, found.param_dtype, found.rate.get_value()) == (
        jnp.bfloat16,
        jnp.float32,
        jnp.int32,
        0.5,
    )


def test_wide_integers_in_a_run_without_them():
    with jax.enable_x64(True):
        model = nnx.Module()
        model.i = nnx.Variable(jnp.asarray([3, -4]))
        with jax.enable_x64(False):
            found = as_dtype(model, jnp.float32)
        assert (str(found.i.dtype), found.i[...].tolist()) == ("int32", [3, -4])
        model.i[...] = jnp.asarray([2**40, 0])
        with jax.enable_x64(False), pytest.raises(ValueError, match="1099511627776 does not fit int32"):
            as_dtype(model, jnp.float32)


def test_a_linen_module_computes_in_the_precision_of_the_run():
    class Inner(linen.Module):
        dtype: Any = jnp.float32

        @linen.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return linen.Dense(3, name="fc", dtype=self.dtype)(x)

    class Outer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x)

    model = nnx.bridge.ToNNX(Inner(), rngs=nnx.Rngs(0))
    nnx.bridge.lazy_init(model, jnp.ones((1, 6)))
    rules = Rules(leaves={nnx.bridge.ToNNX: (LeafRule("fc.weight", "fc.kernel", (1, 0)),)}, unpaired=["fc"])
    source = Outer()
    torch_to_jax(source, model, rules=rules)
    assert check(source, model, x, rules=rules).passed


class TorchNormed(torch.nn.Module):
    """The old weight_norm and spectral_norm keep a weight that they computed, which has a history."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.utils.weight_norm(torch.nn.Linear(6, 4))
        self.cache = {"last": [self.fc.weight * 2]}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)


class FlaxNormedLinear(nnx.Module):
    def __init__(self, epsilon: float) -> None:
        self.weight_g, self.weight_v = nnx.Param(jnp.ones((4, 1))), nnx.Param(jnp.ones((4, 6)))
        self.bias, self.epsilon = nnx.Param(jnp.zeros(4)), epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        v = self.weight_v[...]
        size = jnp.sqrt(jnp.square(v).sum(axis=1, keepdims=True) + self.epsilon)
        return x @ (self.weight_g[...] * v / size).T + self.bias[None]


class FlaxNormed(nnx.Module):
    def __init__(self, epsilon: float = 0.0) -> None:
        self.fc = FlaxNormedLinear(epsilon)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc(x)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_the_old_weight_norm():
    source = TorchNormed()
    for epsilon in (0.0, 1e-6):
        model = FlaxNormed(epsilon)
        torch_to_jax(source, model)
        assert check(source, model, x, level="train").passed == (not epsilon)
    assert source.fc.weight.grad_fn is not None  # the model itself stays as it was
    with pytest.raises(ValueError, match=r"hint: torch.nn.utils.remove_weight_norm\(module\)"):
        torch_to_jax(source, nnx.Dict({"fc": nnx.Linear(6, 4, rngs=nnx.Rngs(0))}))


def test_what_cannot_be_copied_is_named():
    source = torch.nn.Sequential(torch.nn.Linear(2, 2))
    source[0].guard = threading.Lock()
    with pytest.raises(
        ValueError, match=r"guard of 0 in PyTorch cannot be copied \(cannot pickle .*lock.*\): take it off"
    ):
        torch_copy(source)


def test_a_copy_shares_nothing_with_its_model():
    source = TorchPlain()
    copied = torch_copy(source)
    assert copied.fc.weight is copied.again.weight
    assert copied.fc.weight.data_ptr() != source.fc.weight.data_ptr()
    assert torch_copy(source, torch.float64).again.weight.dtype == torch.float64
    assert torch_copy(source, torch.float64).i.dtype == torch.int64


class TorchPlain(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.again = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)
        self.again.weight = self.fc.weight
        self.register_buffer("i", torch.arange(3))
