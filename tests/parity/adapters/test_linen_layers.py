"""Every layer of Linen with a counterpart in PyTorch: carried both ways, and the same in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn

import parity
from tests.support.parity.layers import assert_the_same_layer, last, random
from tests.support.parity.pairs import images

Case = tuple[torch.nn.Module, nn.Module, tuple[int, ...], dict[str, Any]]

LAYERS: dict[str, Callable[[], Case]] = {
    "Dense": lambda: (torch.nn.Linear(3, 5), nn.Dense(5), (4, 3), {}),
    "square Dense": lambda: (torch.nn.Linear(5, 5), nn.Dense(5), (4, 5), {}),
    "Dense without bias": lambda: (torch.nn.Linear(3, 5, bias=False), nn.Dense(5, use_bias=False), (4, 3), {}),
    "Conv 1-D": lambda: (torch.nn.Conv1d(3, 4, 3, padding=1), nn.Conv(4, (3,), padding=1), (2, 3, 9), {}),
    "Conv 2-D, all sizes equal": lambda: (
        torch.nn.Conv2d(3, 3, 3, padding=1),
        nn.Conv(3, (3, 3), padding=1),
        (2, 3, 8, 6),
        {},
    ),
    "Conv 2-D, grouped": lambda: (
        torch.nn.Conv2d(6, 4, 3, groups=2),
        nn.Conv(4, (3, 3), feature_group_count=2, padding="VALID"),
        (2, 6, 5, 7),
        {},
    ),
    "Conv 3-D": lambda: (torch.nn.Conv3d(2, 3, 3), nn.Conv(3, (3, 3, 3), padding="VALID"), (2, 2, 4, 5, 6), {}),
    "ConvTranspose 1-D": lambda: (
        torch.nn.ConvTranspose1d(3, 4, 3, stride=2),
        nn.ConvTranspose(4, (3,), strides=(2,), padding="VALID"),
        (2, 3, 5),
        {},
    ),
    "ConvTranspose 2-D, all sizes equal": lambda: (
        torch.nn.ConvTranspose2d(3, 3, 3, stride=2),
        nn.ConvTranspose(3, (3, 3), strides=(2, 2), padding="VALID"),
        (2, 3, 5, 6),
        {},
    ),
    "ConvTranspose 2-D, the kernel as it is": lambda: (
        torch.nn.ConvTranspose2d(3, 4, 3, stride=2),
        nn.ConvTranspose(4, (3, 3), strides=(2, 2), padding="VALID", transpose_kernel=True),
        (2, 3, 5, 6),
        {},
    ),
    "ConvTranspose 3-D": lambda: (
        torch.nn.ConvTranspose3d(2, 3, (1, 2, 3)),
        nn.ConvTranspose(3, (1, 2, 3), padding="VALID"),
        (2, 2, 4, 5, 6),
        {},
    ),
    "LayerNorm": lambda: (torch.nn.LayerNorm(6), nn.LayerNorm(epsilon=1e-5), (4, 6), {}),
    "GroupNorm": lambda: (torch.nn.GroupNorm(2, 6), nn.GroupNorm(2, epsilon=1e-5), (2, 6, 5, 4), {}),
    "RMSNorm": lambda: (torch.nn.RMSNorm(6, eps=1e-6), nn.RMSNorm(epsilon=1e-6), (4, 6), {}),
    "InstanceNorm": lambda: (
        torch.nn.InstanceNorm2d(6, affine=True),
        nn.InstanceNorm(epsilon=1e-5),
        (2, 6, 5, 4),
        {},
    ),
    "BatchNorm": lambda: (
        torch.nn.BatchNorm2d(6),
        nn.BatchNorm(epsilon=1e-5),
        (2, 6, 5, 4),
        {"use_running_average": True},
    ),
    "PReLU": lambda: (torch.nn.PReLU(), nn.PReLU(), (2, 3, 5), {}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_carried_both_ways_and_computes_the_same(name: str):
    torch_layer, module, shape, options = LAYERS[name]()
    x = images(*shape).astype(np.float32)
    variables = jax.eval_shape(lambda key: module.init(key, jnp.asarray(last(x)), **options), jax.random.key(0))
    ledger = assert_the_same_layer(torch_layer, parity.linen(module, variables, **options), [x], images=True)
    assert bool(ledger.notes) == (name == "ConvTranspose 2-D, all sizes equal")


def test_a_transposed_kernel_that_nothing_decides_is_said():
    """flax's `transpose_kernel` is not seen in the weights if input and output channels are equally many."""
    module = nn.ConvTranspose(3, (3, 3), padding="VALID")
    variables = module.init(jax.random.key(0), jnp.ones((1, 5, 5, 3)))
    ledger = parity.build_ledger(torch.nn.ConvTranspose2d(3, 3, 3), parity.linen(module, variables))
    assert "weight does not decide its layout: taken with its axes (2, 3, 0, 1), flipped along (0, 1)" in str(ledger)


def test_embed():
    tokens = np.array([[0, 6, 2]])
    module = nn.Embed(7, 3)
    adapter = parity.linen(module, module.init(jax.random.key(0), tokens))
    assert_the_same_layer(torch.nn.Embedding(7, 3), adapter, [tokens])


def test_dense_general_splits_an_axis():
    module = nn.DenseGeneral((2, 4))
    adapter = parity.linen(module, module.init(jax.random.key(0), jnp.ones((5, 3))))
    torch_layer = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Unflatten(1, (2, 4)))
    rules = parity.Rules(rename={"^0$": ""})
    parity.torch_to_jax(torch_layer, adapter, rules=rules)
    x = images(5, 3).astype(np.float32)
    expected = torch_layer(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(adapter.as_nnx()(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-6)


class SelfAttention(nn.Module):
    """As torch.nn.MultiheadAttention is called, with its three inputs."""

    @nn.compact
    def __call__(self, q: Any, k: Any, v: Any) -> Any:
        return nn.MultiHeadDotProductAttention(2, qkv_features=6, name="attn")(q, k, v)


@pytest.mark.parametrize("kdim", [None, 4])
def test_attention_with_fused_and_separate_projections(kdim: int | None):
    q, k = images(2, 5, 6).astype(np.float32), images(2, 7, kdim or 6, seed=2).astype(np.float32)
    variables = SelfAttention().init(jax.random.key(0), q, k, k)
    torch_layer = torch.nn.Module()
    torch_layer.attn = torch.nn.MultiheadAttention(6, 2, batch_first=True, kdim=kdim, vdim=kdim)
    torch_layer.forward = lambda *given: torch_layer.attn(*given)[0]  # type: ignore[method-assign]
    assert_the_same_layer(torch_layer, parity.linen(SelfAttention(), variables), [q, k, k])


class Separate(torch.nn.Module):
    """Attention with a layer for each projection, named as in Linen."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (torch.nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, N, C = x.shape
        q, k, v = (f(x).reshape(B, N, 2, C // 2).transpose(1, 2) for f in (self.query, self.key, self.value))
        x = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(x.transpose(1, 2).reshape(B, N, C))


def test_attention_with_a_layer_for_each_projection():
    module, x = nn.MultiHeadDotProductAttention(2), images(2, 5, 6).astype(np.float32)
    assert_the_same_layer(Separate(), parity.linen(module, module.init(jax.random.key(0), x)), [x])


# ---- recurrent layers ----


class Cell(nn.Module):
    """A cell of Linen, called as PyTorch's: its carry is the state, (c, h) in place of (h, c)."""

    cell: nn.RNNCellBase

    def __call__(self, x: Any, h: Any) -> Any:
        carry = (jnp.zeros_like(h), h) if "LSTM" in type(self.cell).__name__ else h
        return self.cell(carry, x)[1]


class TorchCell(torch.nn.Module):
    def __init__(self, cell: torch.nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> Any:
        return self.cell(x, (h, torch.zeros_like(h))) if isinstance(self.cell, torch.nn.LSTMCell) else self.cell(x, h)


@pytest.mark.parametrize(
    ("torch_cell", "cell"),
    [
        (torch.nn.LSTMCell, nn.LSTMCell),
        (torch.nn.LSTMCell, nn.OptimizedLSTMCell),
        (torch.nn.GRUCell, nn.GRUCell),
        (torch.nn.RNNCell, nn.SimpleCell),
    ],
)
def test_cells(torch_cell: type[torch.nn.Module], cell: type[nn.RNNCellBase]):
    x, h = images(2, 3).astype(np.float32), images(2, 4, seed=2).astype(np.float32)
    module = Cell(cell(4))
    torch_layer = TorchCell(torch_cell(3, 4))
    adapter = parity.linen(module, module.init(jax.random.key(0), x, h))
    for name, tensor in torch_layer.named_parameters():
        if name.endswith("bias_hh"):
            assert tensor.any()
    with pytest.raises(ValueError, match=r"cell.bias_hh is not zero, and JAX has one bias .* set it to zero first"):
        parity.torch_to_jax(torch_layer, adapter)
    ledger = assert_the_same_layer(torch_layer, adapter, [x, h])
    assert any("bias_hh has to be zero" in note for note in ledger.notes)


class Lstm(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = torch.nn.LSTM(3, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cell(x)[0]


def test_a_layer_of_one_cell():
    """torch.nn.LSTM calls its tensors weight_ih_l0 and so on."""
    module = nn.RNN(nn.LSTMCell(4), name="lstm")
    x = images(2, 5, 3).astype(np.float32)
    adapter = parity.linen(module, module.init(jax.random.key(0), x))
    assert_the_same_layer(Lstm(), adapter, [x])


def test_both_biases_of_pytorch_have_the_gradient_of_the_one_in_linen():
    module = nn.RNN(nn.LSTMCell(4), name="lstm")
    x = images(2, 5, 3)
    adapter = parity.linen(module, module.init(jax.random.key(0), x))
    holder = random(Lstm())
    parity.torch_to_jax(holder, adapter)
    report = parity.assert_parity(holder, adapter, x)
    assert {"cell.bias_ih_l0", "cell.bias_hh_l0"} <= {row.name for row in report.rows if row.kind == "gradient"}
    with torch.no_grad():
        holder.cell.bias_hh_l0 += 1
    report = parity.check(holder, adapter, x, level="forward")
    assert "cell.bias_hh_l0" in {row.name for row in report.failures if row.kind == "weights"}


class Layers(nn.Module):
    """Recurrent layers, one after the other; those of both directions have the names that Linen gives them."""

    cell: type[nn.RNNCellBase]
    both: bool

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for i in range(2):
            if self.both:
                x = nn.Bidirectional(nn.RNN(self.cell(4)), nn.RNN(self.cell(4)))(x)
            else:
                x = nn.RNN(self.cell(4, name=f"rnn_{i}"))(x)
        return x


class TorchLayers(torch.nn.Module):
    def __init__(self, kind: type[torch.nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.rnn = kind(3, 4, num_layers=2, batch_first=True, **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(x)[0]


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize(
    ("kind", "cell"),
    [(torch.nn.LSTM, nn.OptimizedLSTMCell), (torch.nn.GRU, nn.GRUCell), (torch.nn.RNN, nn.SimpleCell)],
)
def test_recurrent_layers(kind: type[torch.nn.RNNBase], cell: type[nn.RNNCellBase], both: bool):
    x, module = images(2, 5, 3).astype(np.float32), Layers(cell, both)
    adapter = parity.linen(module, module.init(jax.random.key(0), x))
    ledger = assert_the_same_layer(TorchLayers(kind, bidirectional=both), adapter, [x])
    assert any("taken in order" in note for note in ledger.notes) == both


# ---- layers around a layer ----


class Normed(nn.Module):
    """A layer called `fc`, and a convolution called `conv`, inside of `around`."""

    around: Callable[[nn.Module], nn.Module]
    options: dict[str, Any]

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = self.around(nn.Conv(4, (3,), padding="VALID", name="conv"))(x, **self.options)
        return self.around(nn.Dense(5, name="fc"))(x, **self.options)


class TorchNormed(torch.nn.Module):
    def __init__(self, around: Callable[[torch.nn.Module], torch.nn.Module]) -> None:
        super().__init__()
        self.conv, self.fc = around(torch.nn.Conv1d(3, 4, 3)), around(torch.nn.Linear(4, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).transpose(1, 2)).transpose(1, 2)


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
def test_weight_norm():
    x = images(2, 3, 7).astype(np.float32)
    module = Normed(lambda layer: nn.WeightNorm(layer, epsilon=0), {})
    adapter = parity.linen(module, module.init(jax.random.key(0), jnp.asarray(last(x))))
    torch_layer = TorchNormed(torch.nn.utils.parametrizations.weight_norm)
    assert_the_same_layer(torch_layer, adapter, [x], images=True)
    hooked = TorchNormed(torch.nn.utils.weight_norm)
    pairs = {(entry.torch, entry.jax) for entry in parity.build_ledger(hooked, adapter)}
    assert {("fc.weight_g", "WeightNorm_1.fc/kernel/scale"), ("fc.weight_v", "fc.kernel")} <= pairs


@pytest.mark.parametrize("hooked", [False, True])
def test_spectral_norm(hooked: bool):
    """flax makes one more step of the power iteration, so both agree once it has converged, up to float32."""
    x = images(2, 3, 7).astype(np.float32)
    module = Normed(nn.SpectralNorm, {"update_stats": False})
    adapter = parity.linen(module, module.init(jax.random.key(0), jnp.asarray(last(x))))
    around = torch.nn.utils.spectral_norm if hooked else torch.nn.utils.parametrizations.spectral_norm
    torch_layer = TorchNormed(around).train()
    for _ in range(400):
        torch_layer(torch.from_numpy(x))
    ledger = parity.torch_to_jax(torch_layer.eval(), adapter)
    with torch.no_grad():
        expected = torch_layer(torch.from_numpy(x)).numpy()
    assert parity.rel_f(np.asarray(adapter.as_nnx()(jnp.asarray(last(x)))), last(expected)) < 1e-6
    assert len(ledger.torch_only) == len(ledger.jax_only) == 2
