"""Complex numbers: carried, compared and differentiated, real and imaginary part."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import parity
from parity.runs.jax_side import JaxSide
from parity.runs.torch_side import TorchSide
from tests.support.parity.pairs import images

X = images(3, 4, 8)
Z = images(3, 8, seed=2) + 1j * images(3, 8, seed=3)


class TorchFilter(torch.nn.Module):
    """A learned filter on the frequencies of a real signal, as FNO and GFNet have it."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.randn(5, dtype=torch.complex64, generator=torch.manual_seed(0)))
        self.register_buffer("shift", torch.randn(5, dtype=torch.complex64, generator=torch.manual_seed(1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.rfft(x) * self.w + self.shift


class TorchMixer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(8, 8)
        self.filter = TorchFilter()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.irfft(self.filter(self.fc(x)), n=8)


class Filter(nnx.Module):
    def __init__(self, how: str = "") -> None:
        self.w, self.shift = nnx.Param(jnp.zeros(5, jnp.complex64)), nnx.Variable(jnp.zeros(5, jnp.complex64))
        self.how = how

    def __call__(self, x: jax.Array) -> jax.Array:
        w, shift = self.w[...][None, None], self.shift[...][None, None]
        if self.how == "real part of the weight":
            w = w.real + 0j
        if self.how == "conjugated weight":
            w = w.conj()
        if self.how == "imaginary part without a gradient":
            w = w.real + 1j * jax.lax.stop_gradient(w.imag)
        y = jnp.fft.rfft(x) * w + shift
        return y.conj() if self.how == "conjugated output" else y


class Mixer(nnx.Module):
    def __init__(self, how: str = "") -> None:
        self.fc = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
        self.filter = Filter(how)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.fft.irfft(self.filter(self.fc(x)), n=8)


def checked(torch_model: torch.nn.Module, jax_model: nnx.Module, inputs: Any, **options: Any) -> parity.Report:
    parity.torch_to_jax(torch_model, jax_model)
    return parity.check(torch_model, jax_model, inputs, **options)


@pytest.mark.parametrize(("source", "port"), [(TorchMixer, Mixer), (TorchFilter, Filter)])
def test_a_right_port_is_equal_at_every_level(source: type, port: type):
    report = checked(source(), port(), X, level="train")
    assert report.passed, report.brief()
    assert {"gradient", "activation gradient", "output"} <= {row.kind for row in report.rows}


@pytest.mark.parametrize("how", ["real part of the weight", "conjugated weight", "conjugated output"])
def test_a_wrong_forward_pass_is_found(how: str):
    report = checked(TorchMixer(), Mixer(how), X, level="forward")
    assert not report.passed
    assert report.first_divergence == "filter"


def test_a_wrong_gradient_of_the_imaginary_part_is_found():
    report = checked(TorchMixer(), Mixer("imaginary part without a gradient"), X)
    failed = {(row.name, row.kind) for row in report.failures if row.precision == "float64"}
    assert failed == {("filter.w", "gradient"), ("filter", "derivative")}
    assert report.first_divergence == "filter"


class TorchLinear(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(8, 4, dtype=torch.complex64)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.fc(z)


class Linear(nnx.Module):
    def __init__(self, conjugate: bool = False) -> None:
        self.fc = nnx.Linear(8, 4, dtype=jnp.complex64, param_dtype=jnp.complex64, rngs=nnx.Rngs(0))
        self.conjugate = conjugate

    def __call__(self, z: jax.Array) -> jax.Array:
        return self.fc(z.conj() if self.conjugate else z)


def test_complex_inputs_and_layers():
    report = checked(TorchLinear(), Linear(), Z)
    assert report.passed, report.brief()
    assert ("input 0", "gradient") in {(row.name, row.kind) for row in report.rows}
    assert not checked(TorchLinear(), Linear(conjugate=True), Z, level="forward").passed


def test_a_real_port_of_a_complex_model_differs():
    class Real(nnx.Module):
        def __init__(self) -> None:
            self.fc = nnx.Linear(8, 8, rngs=nnx.Rngs(0))

        def __call__(self, x: jax.Array) -> jax.Array:
            return jnp.fft.fft(self.fc(x)).real

    class Fourier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fft.fft(self.fc(x))

    report = checked(Fourier(), Real(), X)
    assert "complex numbers in PyTorch, real ones in JAX" in {row.note for row in report.failures}


def test_a_copy_in_another_precision_keeps_the_imaginary_part():
    source, port = TorchFilter(), Filter()
    parity.torch_to_jax(source, port)
    for precision, dtype in (("float64", np.complex128), ("float32", np.complex64)):
        ours, theirs = TorchSide.of(source, precision), JaxSide.of(port, precision, [None])
        assert ours.model.w.detach().numpy().dtype == ours.inputs([Z])[0].numpy().dtype == dtype
        np.testing.assert_array_equal(ours.model.shift.numpy(), source.shift.numpy())
        np.testing.assert_array_equal(np.asarray(theirs.model.w[...]), source.w.detach().numpy())
        assert theirs.model.w[...].dtype == dtype
        with theirs.switches():
            assert theirs.inputs([Z])[0].dtype == dtype


def test_reduced_formats_of_complex_numbers_are_refused():
    with pytest.raises(ValueError, match="complex numbers have no format below complex64"):
        checked(TorchFilter(), Filter(), X, level="forward", formats=True)
