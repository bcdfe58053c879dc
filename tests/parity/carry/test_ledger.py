"""Names that are one tensor, and what is carried of each type."""

from __future__ import annotations

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from parity import Ledger, Rules, build_ledger, check, jax_to_torch, torch_to_jax
from parity.carry.arrays import to_numpy
from parity.carry.random_weights import randomize
from parity.report.report import Report

x = np.random.RandomState(0).standard_normal((3, 6))
tokens = np.array([[0, 6, 2, 3], [1, 1, 5, 0]])


class TorchTied(torch.nn.Module):
    """A head that is the embedding; `first` says which of them is made, and named, first."""

    def __init__(self, first: str = "embed") -> None:
        super().__init__()
        if first == "head":
            self.head = torch.nn.Linear(4, 7, bias=False)
        self.embed = torch.nn.Embedding(7, 4)
        if first == "embed":
            self.head = torch.nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, i: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.embed(i)))


class FlaxTied(nnx.Module):
    def __init__(self) -> None:
        self.embed = nnx.Embed(7, 4, rngs=nnx.Rngs(0))

    def __call__(self, i: jax.Array) -> jax.Array:
        return self.embed.attend(jnp.tanh(self.embed(i)))


class TorchShared(torch.nn.Module):
    def __init__(self, *names: str) -> None:
        super().__init__()
        layer = torch.nn.Linear(6, 6)
        for name in names:
            setattr(self, name, layer)
        self.names = names

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return getattr(self, self.names[-1])(torch.tanh(getattr(self, self.names[0])(x)))


class FlaxShared(nnx.Module):
    def __init__(self, *names: str) -> None:
        layer = nnx.Linear(6, 6, rngs=nnx.Rngs(0))
        for name in names:
            setattr(self, name, layer)
        self.names = names

    def __call__(self, x: jax.Array) -> jax.Array:
        return getattr(self, self.names[-1])(jnp.tanh(getattr(self, self.names[0])(x)))


def passes(torch_model: torch.nn.Module, jax_model: nnx.Module, inputs: np.ndarray, **options: object) -> Report:
    report = check(torch_model, jax_model, inputs, **options)  # type: ignore[arg-type]
    assert report.passed, report
    return report


@pytest.mark.parametrize("first", ["embed", "head"])
def test_a_tied_head_needs_no_rule(first: str):
    source, model = TorchTied(first), FlaxTied()
    randomize(source)
    ledger = torch_to_jax(source, model)
    assert ([entry.torch for entry in ledger], ledger.tied) == (["embed.weight"], ("head.weight",))
    assert "head.weight is embed.weight in PyTorch (tied): carried once" in str(ledger)
    report = passes(source, model, tokens)
    assert ledger.notes[0] in report.notes
    assert any(row.kind == "gradient" and row.name == "embed.weight" for row in report.rows)
    assert Report.from_json(report.to_json()).ledger == ledger
    assert build_ledger(source.state_dict(), model) == ledger
    model.embed.embedding[...] += 1
    jax_to_torch(model, source)
    assert source.head.weight is source.embed.weight
    np.testing.assert_array_equal(source.head.weight.detach(), model.embed.embedding[...])


def test_a_head_of_equal_numbers_is_not_tied():
    """Trained, it would part from the embedding."""
    source = TorchTied()
    source.head.weight = torch.nn.Parameter(source.embed.weight.detach().clone())
    with pytest.raises(ValueError, match=r"head.weight \[7, 4\] of PyTorch has no partner in JAX"):
        torch_to_jax(source, FlaxTied())
    state = {name: value.clone() for name, value in TorchTied().state_dict().items()}
    with pytest.raises(ValueError, match=r"head.weight \[7, 4\] of PyTorch has no partner in JAX"):
        torch_to_jax(state, FlaxTied())


def test_a_tied_head_with_a_bias_of_its_own_still_needs_a_partner():
    source = TorchTied()
    source.head.bias = torch.nn.Parameter(torch.zeros(7))
    with pytest.raises(ValueError, match=r"^1 tensors .*: head.bias \[7\] of PyTorch has no partner"):
        torch_to_jax(source, FlaxTied())


@pytest.mark.parametrize("ours", [("first",), ("again",), ("first", "again")])
@pytest.mark.parametrize("theirs", [("first",), ("again",), ("first", "again")])
def test_a_shared_module_is_found_under_any_of_its_names(ours: tuple[str, ...], theirs: tuple[str, ...]):
    source, model = TorchShared(*ours), FlaxShared(*theirs)
    if not set(ours) & set(theirs):
        with pytest.raises(ValueError, match="has no partner"):
            torch_to_jax(source, model)
        return
    ledger = torch_to_jax(source, model)
    assert len(ledger) == 2
    assert len(ledger.tied) == 2 * (len(ours) - 1)
    report = passes(source, model, x, level="forward")
    assert [name for name, kind in report.layers if kind == "Linear"] == [f"{ours[0]}", f"{ours[0]}#2"]
    target = TorchShared(*ours)
    jax_to_torch(model, target)
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_a_tie_of_pytorch_alone_is_told():
    """Both hold the same numbers: carried and back; trained, JAX's would part, which the gradients show."""

    class Untied(FlaxTied):
        def __init__(self) -> None:
            super().__init__()
            self.head = nnx.Linear(4, 7, use_bias=False, rngs=nnx.Rngs(1))

        def __call__(self, i: jax.Array) -> jax.Array:
            return self.head(jnp.tanh(self.embed(i)))

    source, model = TorchTied(), Untied()
    assert torch_to_jax(source, model).tied == ()
    jax_to_torch(model, source)
    report = check(source, model, tokens)
    assert {row.kind for row in report.rows if not row.passed} == {"gradient", "derivative"}
    assert any("head.weight is embed.weight in PyTorch (tied), and two tensors in JAX" in note for note in report.notes)
    model.head.kernel[...] += 1
    with pytest.raises(ValueError, match=r"embed.weight and head.weight are one tensor in PyTorch and differ in JAX"):
        jax_to_torch(model, source)


def test_a_flip_is_told_and_kept():
    model = nnx.Dict({"up": nnx.ConvTranspose(3, 4, (2, 3), rngs=nnx.Rngs(0))})
    ledger = build_ledger(torch.nn.ModuleDict({"up": torch.nn.ConvTranspose2d(3, 4, (2, 3))}), model)
    assert "up.weight [3, 4, 2, 3] <-> up.kernel [2, 3, 3, 4] transposed (2, 3, 0, 1) flipped (0, 1) float32" in str(
        ledger
    )
    assert copy.copy(ledger) == Ledger(ledger.entries)
    with pytest.raises(ValueError, match=r"up.weight \[4, 2, 2, 3\] does not fit up.kernel"):  # groups: flax has none
        build_ledger(torch.nn.ModuleDict({"up": torch.nn.ConvTranspose2d(4, 4, (2, 3), groups=2)}), model)


# ---- dtypes ----


def test_integers_of_64_bits_are_carried_by_their_value():
    source, model = torch.nn.Module(), nnx.Module()
    source.register_buffer("places", torch.tensor([0, -(2**31), 2**31 - 1]))
    model.places = nnx.Variable(jnp.zeros(3, jnp.int32))
    torch_to_jax(source, model)
    assert model.places.dtype == jnp.int32
    before = source.places.clone()
    source.places.zero_()
    jax_to_torch(model, source)
    assert (source.places.dtype, source.places.tolist()) == (torch.int64, before.tolist())
    source.places[0] = 2**33 + 5
    for options in ({}, {"cast": True}):
        with pytest.raises(ValueError, match="places: 8589934597 does not fit int32"):
            torch_to_jax(source, model, **options)
    assert model.places[0] == 0
    with jax.enable_x64(True):
        torch_to_jax(source, model)
        assert int(model.places[0]) == 2**33 + 5
        jax_to_torch(model, source)
        source.places = source.places.to(torch.int32)
        jax_to_torch(model, source)
    assert source.places.tolist() == [2**33 + 5, -(2**31), 2**31 - 1]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_numbers_are_carried_bit_for_bit(x64: None, dtype: torch.dtype):
    """Transposed, in stacks and in parts too."""
    source, model = torch.nn.Module(), nnx.Module()
    source.blocks = torch.nn.ModuleList(torch.nn.Linear(2, 3, dtype=dtype) for _ in range(2))
    source.attn = torch.nn.MultiheadAttention(4, 2, dtype=dtype)
    rngs = nnx.Rngs(0)
    model.blocks = nnx.eval_shape(lambda: nnx.vmap(lambda r: nnx.Linear(2, 3, rngs=r))(nnx.Rngs(0).split(2)))
    model.attn = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
    with torch.no_grad():
        for p in source.parameters():
            p.copy_(torch.randn(p.shape, dtype=dtype))
    source.attn.in_proj_bias.data[0] = complex(float("nan"), -0.0)
    rules = Rules(stacked={"blocks": "blocks"})
    before = {name: to_numpy(p).tobytes() for name, p in source.state_dict().items()}
    torch_to_jax(source, model, rules=rules)
    with torch.no_grad():
        for p in source.parameters():
            p.zero_()
    jax_to_torch(model, source, rules=rules)
    assert {name: to_numpy(p).tobytes() for name, p in source.state_dict().items()} == before
