"""Names that are one tensor, wrappers around a model, square matrices, and what to write where names do not meet."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from parity import LeafRule, Ledger, Rules, build_ledger, check, jax_to_torch, torch_to_jax
from parity.arrays import to_numpy
from parity.models import power
from parity.report import Report

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
    power(source)
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


# ---- wrappers ----


class TorchOne(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(6, 6)
        self.scale = torch.nn.Parameter(torch.tensor(1.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) * self.scale


class FlaxOne(nnx.Module):
    def __init__(self) -> None:
        self.fc = nnx.Linear(6, 6, rngs=nnx.Rngs(0))
        self.scale = nnx.Param(jnp.ones(()))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc(x) * self.scale[...]


class Deeper(nnx.Module):
    """The model one level deeper, and perhaps not the same any more."""

    def __init__(self, factor: float = 1.0) -> None:
        self.model, self.factor = FlaxOne(), factor

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.model(x) * self.factor


compiled = functools.partial(torch.compile, backend="eager")

WRAPPERS: dict[str, Callable[[torch.nn.Module], torch.nn.Module]] = {
    "parallel": torch.nn.DataParallel,
    "average": torch.optim.swa_utils.AveragedModel,
    "compiled": compiled,
    "both": lambda model: torch.nn.DataParallel(compiled(model)),
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_wrapped_model_is_the_model_inside(kind: str):
    model = FlaxOne()
    wrapped = WRAPPERS[kind](TorchOne())
    ledger = torch_to_jax(wrapped, model)
    assert {entry.torch for entry in ledger} == {"fc.weight", "fc.bias", "scale"}
    passes(wrapped, model, x, level="forward")
    model.fc.bias[...] += 1
    jax_to_torch(model, wrapped)
    passes(wrapped, model, x, level="forward")


@pytest.mark.parametrize("kind", ["parallel", "compiled", "both"])
def test_the_names_of_a_wrapped_models_state_dict(kind: str):
    state = WRAPPERS[kind](TorchOne()).state_dict()
    ledger = torch_to_jax(state, FlaxOne())
    assert [entry.torch for entry in ledger] == list(state)
    assert ledger.notes == (
        f"{ledger.entries[0].torch.removesuffix('scale')} before every name of PyTorch was left out",
    )


def test_a_module_that_jax_calls_module_is_no_wrapper():
    model = nnx.Module()
    model.module = nnx.Linear(6, 6, rngs=nnx.Rngs(0))
    source = torch.nn.Module()
    source.module = torch.nn.Linear(6, 6)
    assert not torch_to_jax(source.state_dict(), model).notes


def scripted() -> torch.nn.Module:
    return torch.jit.script(TorchOne())


def compiled_inside() -> torch.nn.Module:
    model = TorchOne()
    model.fc = compiled(model.fc)
    return model


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_compiled_code_is_carried_and_not_looked_into():
    model, source = FlaxOne(), scripted()
    torch_to_jax(source, model)
    np.testing.assert_array_equal(model.fc.kernel[...], source.fc.weight.detach().T)
    model.fc.kernel[...] += 1
    jax_to_torch(model, source)
    np.testing.assert_array_equal(model.fc.kernel[...], source.fc.weight.detach().T)
    with pytest.raises(
        ValueError, match="the model is a ScriptModule, whose calls cannot be recorded: give the module"
    ):
        check(source, model, x)
    with pytest.raises(ValueError, match=r"fc is compiled \(torch.compile\): put fc._orig_mod in its place"):
        check(compiled_inside(), model, x)
    with pytest.raises(ValueError, match=r"hint: a part of the model is compiled"):
        torch_to_jax(compiled_inside(), model)


def test_a_model_one_level_deeper_in_jax():
    source, rules = TorchOne(), Rules(rename={r"^": "model."})
    with pytest.raises(
        ValueError, match=r"hint: all of it lies in model on one side: Rules\(rename={r'\^': 'model.'}\)"
    ):
        torch_to_jax(source, Deeper())
    for factor in (1.0, 1.001):
        model = Deeper(factor)
        torch_to_jax(source, model, rules=rules)
        assert check(source, model, x, rules=rules).passed == (factor == 1)


def test_a_model_one_level_deeper_in_pytorch():
    class Outer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Linear(6, 6))

    model = nnx.List([nnx.Linear(6, 6, rngs=nnx.Rngs(0))])
    with pytest.raises(ValueError, match=r"Rules\(rename={r'\^net\\.\?': ''}\)"):
        torch_to_jax(Outer(), model)
    assert len(torch_to_jax(Outer(), model, rules=Rules(rename={r"^net\.?": ""}))) == 2


# ---- what a layer keeps otherwise ----


class Conv1D(torch.nn.Module):
    """That of GPT-2: the weight is (in, out)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(inputs, outputs))
        self.bias = torch.nn.Parameter(torch.randn(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


class Dense(Conv1D):
    """Of another name."""


class OutIn(torch.nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(outputs, inputs))
        self.bias = torch.nn.Parameter(torch.randn(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight, self.bias)


class TorchChain(torch.nn.Module):
    def __init__(self, kind: Callable[[int, int], torch.nn.Module], *sizes: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(kind(a, b) for a, b in itertools.pairwise(sizes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


class FlaxChain(nnx.Module):
    def __init__(self, *sizes: int) -> None:
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return x


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        (Conv1D, (6, 6)),  # known by its name
        (Dense, (6, 4, 4)),  # the other layer of this type tells
        (Dense, (6, 4)),
        (OutIn, (6, 6, 5)),
        (OutIn, (6, 6)),  # as of nn.Linear, and told
        (torch.nn.Linear, (6, 6)),
    ],
)
def test_a_square_matrix_follows_the_type_of_its_layer(
    kind: Callable[[int, int], torch.nn.Module], sizes: tuple[int, ...]
):
    source, model = TorchChain(kind, *sizes), FlaxChain(*sizes)
    ledger = torch_to_jax(source, model)
    passes(source, model, x, level="forward")
    assert bool(ledger.notes) == (kind is OutIn and sizes == (6, 6))
    target = TorchChain(kind, *sizes)
    jax_to_torch(model, target)
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_a_square_matrix_that_nothing_tells_of_is_not_guessed_in_silence():
    source, model = TorchChain(Dense, 6, 6), FlaxChain(6, 6)
    ledger = torch_to_jax(source, model)
    (note,) = ledger.notes
    assert note.startswith(
        "layers.0.weight [6, 6] of Dense is square: it was transposed, as of nn.Linear; if Dense keeps"
    )
    report = check(source, model, x, level="forward")
    assert not report.passed
    assert note in report.notes
    rules = Rules(leaves={nnx.Linear: (LeafRule("weight", "kernel"),)})
    assert not torch_to_jax(source, model, rules=rules).notes
    passes(source, model, x, level="forward", rules=rules)


def test_what_parametrizations_compute_is_not_there_to_carry():
    model = nnx.Dict({"fc": nnx.Linear(6, 6, rngs=nnx.Rngs(0))})
    new = torch.nn.ModuleDict({"fc": torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(6, 6))})
    with pytest.raises(
        ValueError, match=r"hint: torch.nn.utils.parametrize.remove_parametrizations\(module, 'weight'\)"
    ):
        torch_to_jax(new, model)
    torch.nn.utils.parametrize.remove_parametrizations(new["fc"], "weight")
    torch_to_jax(new, model)


def test_lazy_layers_are_not_there_yet():
    with pytest.raises(
        ValueError, match=r"0.weight of PyTorch is not initialised \(a lazy module\): run the model once"
    ):
        torch_to_jax(torch.nn.Sequential(torch.nn.LazyLinear(3)), nnx.List([nnx.Linear(2, 3, rngs=nnx.Rngs(0))]))


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
