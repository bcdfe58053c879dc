"""Layers against their formulas, and the defaults of flax that would break equality."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t2t_jax.models.layers import (
    GELU,
    Activation,
    Buffer,
    Conv,
    Dropout,
    DropPath,
    LayerNorm,
    Linear,
    Sequential,
    Unfold,
    check_images,
    gelu,
    trunc_normal,
)
from t2t_jax.ops.platform import traced_for
from tests.support.golden import rel_f
from tests.support.jax_models import equations, modules, normal


def test_trunc_normal_has_absolute_bounds():
    x = np.asarray(trunc_normal(jax.random.key(0), (400, 300)))
    assert x.std() == pytest.approx(0.02, rel=0.01)
    assert x.mean() == pytest.approx(0.0, abs=3e-4)
    # Cut at two standard deviations, nothing would lie beyond 0.04.
    assert 0.04 < np.abs(x).max() < 0.15


def test_linear_starts_small_without_bias():
    layer = Linear(400, 300, rngs=nnx.Rngs(0))
    assert float(layer.kernel[...].std()) == pytest.approx(0.02, rel=0.01)
    assert not layer.bias[...].any()
    assert Linear(4, 3, use_bias=False, rngs=nnx.Rngs(0)).bias is None


def test_layer_norm_keeps_its_digits_when_the_mean_is_large():
    """flax's default variance, E[x^2] - E[x]^2, has lost all of them at a mean of 1000."""
    layer = LayerNorm(64, rngs=nnx.Rngs(0))
    x = 1000 + normal(8, 64)
    wide = np.asarray(x, np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    assert rel_f(layer(x), expected) < 1e-4
    assert rel_f(nnx.LayerNorm(64, epsilon=1e-5, rngs=nnx.Rngs(0))(x), expected) > 1e-2


def test_layer_norm_epsilon(x64: None):
    x = normal(4, 8, dtype=np.float64) * 1e-3
    for options, eps in (({}, 1e-5), ({"epsilon": 1e-6}, 1e-6)):
        layer = LayerNorm(8, rngs=nnx.Rngs(0), **options)
        expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
        assert rel_f(layer(x), expected) < 1e-13


def test_layer_norm_statistics_are_float32_under_bfloat16():
    layer = LayerNorm(64, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    x = (100 + normal(8, 64)).astype(jnp.bfloat16)
    y = layer(x)
    assert y.dtype == jnp.bfloat16
    wide = np.asarray(x, np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    assert rel_f(y.astype(jnp.float32), expected) < 2**-8


def test_convolution_starts_as_in_pytorch():
    layer = Conv(8, 50, 7, rngs=nnx.Rngs(0))
    bound = 1 / math.sqrt(8 * 7 * 7)
    for values in (layer.kernel[...], layer.bias[...]):
        assert 0.9 * bound < float(jnp.abs(values).max()) <= bound
    assert float(layer.kernel[...].std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_convolution_by_loops(x64: None):
    layer = Conv(3, 4, 3, stride=2, padding=1, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    x, kernel, bias = normal(2, 7, 6, 3, dtype=np.float64), np.asarray(layer.kernel[...]), np.asarray(layer.bias[...])
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    out = np.empty((2, 4, 3, 4))
    for i in range(4):
        for j in range(3):
            window = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            out[:, i, j] = np.tensordot(window, kernel, 3) + bias
    assert rel_f(layer(x), out) < 1e-13


def test_gelu_has_its_own_slope_in_both_modes(x64: None):
    x = jnp.linspace(-6.0, 6.0, 25, dtype=jnp.float64)
    expected = jax.vmap(jax.grad(lambda x: jax.nn.gelu(x, approximate=False)))(x)
    assert rel_f(jax.vmap(jax.grad(gelu))(x), expected) <= 1e-14
    assert rel_f(jax.jvp(gelu, (x,), (jnp.ones_like(x),))[1], expected) <= 1e-14


def test_gelu_is_rounded_once_in_bfloat16():
    x = normal(1000, dtype=jnp.bfloat16)
    exact = gelu(x.astype(jnp.float32))
    np.testing.assert_array_equal(gelu(x), exact.astype(jnp.bfloat16))


def test_gelu_is_exact(x64: None):
    x = np.linspace(-5, 5, 101)
    expected = x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    assert rel_f(GELU()(jnp.asarray(x)), expected) < 1e-14
    assert rel_f(jax.nn.gelu(jnp.asarray(x)), expected) > 1e-5  # flax's default


def test_drop_path_drops_whole_samples_and_rescales_the_others():
    y = np.asarray(DropPath(0.2)(jnp.ones((2000, 3, 5)), rngs=nnx.Rngs(dropout=0))).reshape(2000, 15)
    assert (y == y[:, :1]).all()  # one draw for each sample
    assert set(y[:, 0].tolist()) == {0.0, 1.25}
    assert y.mean() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("layer_type", [Dropout, DropPath])
def test_dropout_in_evaluation_and_in_training(layer_type: type[Dropout]):
    x, layer = normal(4, 3, 5), layer_type(0.5)
    layer.eval()
    np.testing.assert_array_equal(layer(x), x)
    layer.train()
    a, b, c = (layer(x, rngs=nnx.Rngs(dropout=seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)
    with pytest.raises(ValueError, match="rngs"):
        layer(x)
    assert not layer_type(1.0)(x, rngs=nnx.Rngs(dropout=0)).any()


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(7, 4, 2), (3, 2, 1), (2, 1, 0), (2, 3, 1)])
@pytest.mark.parametrize("size", [(16, 16), (9, 14)])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_unfold_is_channel_major_and_bit_for_bit(
    kernel: int, stride: int, padding: int, size: tuple[int, int], platform: str
):
    x = np.asarray(normal(2, *size, 3))
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows, columns = ((side + 2 * padding - kernel) // stride + 1 for side in size)
    expected = np.empty((2, rows, columns, 3, kernel, kernel), np.float32)
    for i in range(rows):
        for j in range(columns):
            top, left = i * stride, j * stride
            expected[:, i, j] = padded[:, top : top + kernel, left : left + kernel].transpose(0, 3, 1, 2)
    expected = expected.reshape(2, rows * columns, 3 * kernel * kernel)
    with traced_for(platform):
        np.testing.assert_array_equal(Unfold(kernel, stride, padding)(jnp.asarray(x)), expected)


def test_unfold_by_a_convolution_asks_for_whole_pixels():
    """Its default precision would round them, and their gradients, on the hardware that takes it."""
    with traced_for("tpu"):
        program = jax.make_jaxpr(jax.grad(lambda x: Unfold(3, 2, 1)(x).sum()))(jnp.zeros((1, 8, 8, 2))).jaxpr
    convolutions = [e for e in equations(program) if e.primitive.name == "conv_general_dilated"]
    assert len(convolutions) == 2
    for convolution in convolutions:
        pixels, _ = convolution.params["precision"]
        assert pixels == jax.lax.Precision.HIGHEST


def test_sequential_has_the_paths_of_pytorch():
    layers = Sequential([Linear(3, 4, rngs=nnx.Rngs(0)), Activation(jnp.tanh), Dropout(0.5)])
    assert modules(layers, nnx.Module).keys() - {""} == {"0", "1", "2"}
    layers.eval()
    x = normal(2, 3)
    np.testing.assert_array_equal(layers(x), jnp.tanh(layers[0](x)))
    layers.train()
    assert not np.array_equal(layers(x, rngs=nnx.Rngs(dropout=0)), jnp.tanh(layers[0](x)))


def test_a_buffer_is_no_parameter():
    class Holder(nnx.Module):
        def __init__(self) -> None:
            self.table, self.weight = Buffer(jnp.ones(2)), nnx.Param(jnp.ones(3))

    assert list(nnx.state(Holder(), nnx.Param)) == ["weight"]
    assert list(nnx.state(Holder(), Buffer)) == ["table"]


@pytest.mark.parametrize("shape", [(32, 48, 3), (2, 32, 48, 1), (2, 48, 32, 3), (2, 3, 32, 48)])
def test_check_images_names_what_came_and_what_was_expected(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="expected images") as error:
        check_images(jnp.zeros(shape), 3, (32, 48))
    assert str(shape) in str(error.value)
    assert "32, 48, 3" in str(error.value)


def test_check_images_refuses_integers_and_accepts_its_size():
    check_images(jnp.zeros((2, 32, 48, 3)), 3, (32, 48))
    with pytest.raises(ValueError, match="uint8"):
        check_images(jnp.zeros((2, 32, 48, 3), jnp.uint8), 3, (32, 48))
