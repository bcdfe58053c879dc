"""Models inside of others, and what to write where names do not meet."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from parity import Rules, check, jax_to_torch, torch_to_jax
from parity.carry.wrappers import LISTED, likeness, listing, plain_names
from tests.parity.carry.test_ledger import passes, x


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


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("hooked", [False, True])
def test_the_names_of_reparametrised_weights(hooked: bool):
    utils = torch.nn.utils if hooked else torch.nn.utils.parametrizations
    for around, plain in (
        (utils.weight_norm, {"weight", "weight_g", "bias"}),
        (utils.spectral_norm, {"weight", "weight_u", "weight_v", "bias"}),
    ):
        names = around(torch.nn.Linear(3, 4)).state_dict().keys()
        assert set(plain_names(names).values()) == plain
        assert set(plain_names([f"a.{name}" for name in names]).values()) == {f"a.{name}" for name in plain}
    others = ["conv.weight", "a.weight_v", "b.weight_g", "parametrizations.weight.original", "w.0._u", "x_orig"]
    assert plain_names(others) == {name: name for name in others}


def test_likeness_knows_what_leaves_are_called():
    assert likeness("h.0.weight", "h.0.kernel") == 1 > likeness("h.0.weight", "h.1.kernel")


def unpaired(ours: dict[str, tuple[int, ...]], theirs: dict[str, tuple[int, ...]]) -> tuple[list[str], str | None]:
    problems = [f"{name} {list(shape)} of PyTorch has no partner in JAX" for name, shape in ours.items()]
    problems += [f"{name} {list(shape)} of JAX has no partner in PyTorch" for name, shape in theirs.items()]
    return listing(problems, ours, theirs)


def test_the_same_problem_in_every_layer_is_one_line_with_the_likely_partner():
    ours, theirs = dict[str, tuple[int, ...]](), dict[str, tuple[int, ...]]()
    for i in range(12):
        ours |= {f"h.{i}.norm1.weight": (8,), f"h.{i}.norm1.bias": (8,), f"h.{i}.fc.weight": (9, 8)}
        theirs |= {f"blocks.{i}.ln_1.scale": (8,), f"blocks.{i}.ln_1.bias": (8,), f"blocks.{i}.fc.kernel": (8, 9)}
    lines, rename = unpaired({**ours, "table": (3,)}, {**theirs, "gamma": (5,)})
    assert lines == [
        "h.*.norm1.weight [8] of PyTorch has no partner in JAX (12 of them): blocks.*.ln_1.scale?",
        "h.*.norm1.bias [8] of PyTorch has no partner in JAX (12 of them): blocks.*.ln_1.bias?",
        "h.*.fc.weight [9, 8] of PyTorch has no partner in JAX (12 of them): blocks.*.fc.kernel?",
        "table [3] of PyTorch has no partner in JAX",
        "gamma [5] of JAX has no partner in PyTorch",
    ]
    assert rename is not None
    rules = eval(rename, {"Rules": Rules})
    assert rules.jax_path("h.3.norm1") == "blocks.3.ln_1"
    assert rules.jax_path("h.11.fc") == "blocks.11.fc"


def test_tensors_of_one_module_have_likely_partners_in_one_module():
    ours = {"norm2.weight": (8,), "norm2.bias": (8,)}
    lines, rename = unpaired(ours, {"fc2.bias": (8,), "ln_2.bias": (8,), "ln_2.scale": (8,)})
    assert [line.rpartition(": ")[2] for line in lines[:2]] == ["ln_2.scale?", "ln_2.bias?"]
    assert rename == 'Rules(rename={"^norm2$": "ln_2"})'


def test_a_message_is_a_screen_at_most():
    names = "abcdefghijklmnopqrstuvwxyz"
    lines, rename = unpaired({f"{x}.weight": (2,) for x in names}, {f"{x}.kernel": (3,) for x in names})
    assert len(lines) == 2 * LISTED + 1
    assert lines[-1] == f"{2 * (26 - LISTED)} more lines like these"
    assert rename is None


def test_the_error_of_a_pair_shows_the_rule_that_helps():
    ours, theirs = (
        torch.nn.ModuleDict({"fc1": torch.nn.Linear(3, 4)}),
        nnx.Dict(fc_1=nnx.Linear(3, 4, rngs=nnx.Rngs(0))),
    )
    with pytest.raises(ValueError, match="cannot be carried over") as error:
        torch_to_jax(ours, theirs)
    text = str(error.value).partition("if the likely partners are right, write ")[2].partition(")\n")[0]
    assert torch_to_jax(ours, theirs, rules=eval(text, {"Rules": Rules}))
