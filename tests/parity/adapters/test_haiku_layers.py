"""Every layer of Haiku with a counterpart in PyTorch: carried both ways, and the same in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import numpy as np
import pytest
import torch

import parity
from parity.adapters.haiku import HaikuAdapter
from tests.support.parity.layers import assert_the_same_layer, last
from tests.support.parity.pairs import images

Case = tuple[torch.nn.Module, Callable[[Any], Any], tuple[int, ...]]


def adapted(f: Callable[..., Any], *inputs: Any) -> HaikuAdapter:
    """The adapter of a function of the inputs and of `is_training`, which is true when it is initialised."""

    def whole(*inputs: Any, is_training: bool = True) -> Any:
        return f(*inputs, is_training) if f.__code__.co_argcount > len(inputs) else f(*inputs)

    transformed = hk.transform_with_state(whole)
    params, state = jax.jit(transformed.init)(jax.random.key(0), *inputs)
    return parity.haiku(transformed, params, state, is_training=False)


class Named(torch.nn.Module):
    """A model of one layer, called `layer`."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *given: torch.Tensor) -> Any:
        found = self.layer(*given)
        return found[0] if isinstance(found, tuple) else found


NAME: Any = {"name": "layer"}

LAYERS: dict[str, Callable[[], Case]] = {
    "Linear": lambda: (torch.nn.Linear(3, 5), lambda x: hk.Linear(5, **NAME)(x), (4, 3)),
    "square Linear": lambda: (torch.nn.Linear(5, 5), lambda x: hk.Linear(5, **NAME)(x), (4, 5)),
    "Conv1D": lambda: (torch.nn.Conv1d(3, 4, 3, padding=1), lambda x: hk.Conv1D(4, 3, **NAME)(x), (2, 3, 9)),
    "Conv2D, all sizes equal": lambda: (
        torch.nn.Conv2d(3, 3, 3, padding=1),
        lambda x: hk.Conv2D(3, 3, **NAME)(x),
        (2, 3, 8, 6),
    ),
    "Conv2D, grouped": lambda: (
        torch.nn.Conv2d(6, 4, 3, padding=1, groups=2),
        lambda x: hk.Conv2D(4, 3, feature_group_count=2, **NAME)(x),
        (2, 6, 5, 7),
    ),
    "DepthwiseConv2D": lambda: (
        torch.nn.Conv2d(3, 6, 3, padding=1, groups=3),
        lambda x: hk.DepthwiseConv2D(2, (3, 3), **NAME)(x),
        (2, 3, 5, 7),
    ),
    "Conv3D": lambda: (
        torch.nn.Conv3d(2, 3, 3, padding=1),
        lambda x: hk.Conv3D(3, 3, **NAME)(x),
        (2, 2, 4, 5, 6),
    ),
    "Conv1DTranspose": lambda: (
        torch.nn.ConvTranspose1d(3, 4, 3, stride=2),
        lambda x: hk.Conv1DTranspose(4, 3, stride=2, padding="VALID", **NAME)(x),
        (2, 3, 5),
    ),
    "Conv2DTranspose, all sizes equal": lambda: (
        torch.nn.ConvTranspose2d(3, 3, 3, stride=2),
        lambda x: hk.Conv2DTranspose(3, 3, stride=2, padding="VALID", **NAME)(x),
        (2, 3, 5, 6),
    ),
    "Conv3DTranspose": lambda: (
        torch.nn.ConvTranspose3d(2, 3, (1, 2, 3)),
        lambda x: hk.Conv3DTranspose(3, (1, 2, 3), padding="VALID", **NAME)(x),
        (2, 2, 4, 5, 6),
    ),
    "LayerNorm": lambda: (torch.nn.LayerNorm(6), lambda x: hk.LayerNorm(-1, True, True, **NAME)(x), (4, 6)),
    "GroupNorm": lambda: (torch.nn.GroupNorm(2, 6), lambda x: hk.GroupNorm(2, **NAME)(x), (2, 6, 5, 4)),
    "InstanceNorm": lambda: (
        torch.nn.InstanceNorm2d(6, affine=True),
        lambda x: hk.InstanceNorm(True, True, **NAME)(x),
        (2, 6, 5, 4),
    ),
    "RMSNorm": lambda: (torch.nn.RMSNorm(6, eps=1e-5), lambda x: hk.RMSNorm(-1, **NAME)(x), (4, 6)),
    "BatchNorm": lambda: (
        torch.nn.BatchNorm2d(6),
        lambda x, is_training: hk.BatchNorm(True, True, 0.9, **NAME)(x, is_training),
        (2, 6, 5, 4),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_carried_both_ways_and_computes_the_same(name: str):
    torch_layer, f, shape = LAYERS[name]()
    x = images(*shape).astype(np.float32)
    ledger = assert_the_same_layer(Named(torch_layer), adapted(f, last(x)), [x], images=True)
    assert not ledger.notes


def test_channels_first():
    """The bias of a convolution and the scale of a batch norm have further axes of size 1 then."""

    def f(x: Any, is_training: bool) -> Any:
        x = hk.Conv2D(5, 3, data_format="NCHW", name="conv")(x)
        return hk.BatchNorm(True, True, 0.9, data_format="channels_first", name="norm")(x, is_training)

    x = images(2, 3, 5, 4).astype(np.float32)
    torch_model = torch.nn.Sequential()
    torch_model.add_module("conv", torch.nn.Conv2d(3, 5, 3, padding=1))
    torch_model.add_module("norm", torch.nn.BatchNorm2d(5))
    assert_the_same_layer(torch_model, adapted(f, x), [x])


def test_the_averages_of_a_batch_norm_are_its_statistics():
    adapter = adapted(lambda x: hk.BatchNorm(True, True, 0.9, name="norm")(x, is_training=True), images(4, 6))
    torch_model = torch.nn.Sequential()
    torch_model.add_module("norm", torch.nn.BatchNorm1d(6))
    ledger = parity.build_ledger(torch_model, adapter)
    assert {entry.torch: entry.jax for entry in ledger if "running" in entry.torch} == {
        "norm.running_mean": "norm.mean_ema.average",
        "norm.running_var": "norm.var_ema.average",
    }
    assert set(ledger.jax_only) == {f"norm.{x}_ema.{y}" for x in ("mean", "var") for y in ("counter", "hidden")}


def test_embed():
    tokens = np.array([[0, 6, 2]])
    adapter = adapted(lambda x: hk.Embed(7, 3, name="layer")(x), tokens)
    assert_the_same_layer(Named(torch.nn.Embedding(7, 3)), adapter, [tokens])


def test_attention():
    q, k = images(2, 5, 6).astype(np.float32), images(2, 7, 6, seed=2).astype(np.float32)

    def f(q: Any, k: Any, v: Any) -> Any:
        return hk.MultiHeadAttention(2, 3, w_init=hk.initializers.Constant(1), model_size=6, name="layer")(q, k, v)

    torch_layer = Named(torch.nn.MultiheadAttention(6, 2, batch_first=True))
    assert_the_same_layer(torch_layer, adapted(f, q, k, k), [q, k, k])


def test_vanilla_rnn():
    x, h = images(2, 3).astype(np.float32), images(2, 4, seed=2).astype(np.float32)
    adapter = adapted(lambda x, h: hk.VanillaRNN(4, double_bias=True, name="layer")(x, h)[0], x, h)
    torch_layer = Named(torch.nn.RNNCell(3, 4, nonlinearity="relu"))
    assert_the_same_layer(torch_layer, adapter, [x, h])


def test_recurrent_layers():
    x = images(2, 5, 3).astype(np.float32)

    def f(x: Any) -> Any:
        core = hk.DeepRNN([hk.VanillaRNN(4, double_bias=True, name=f"layer_{i}") for i in range(2)])
        return hk.dynamic_unroll(core, x, core.initial_state(x.shape[0]), time_major=False)[0]

    torch_layer = Named(torch.nn.RNN(3, 4, num_layers=2, nonlinearity="relu", batch_first=True))
    assert_the_same_layer(torch_layer, adapted(f, x), [x])
