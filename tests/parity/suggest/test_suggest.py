"""Rules proposed for models with unrelated names; ambiguity and unequal functions are said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import parity
from parity import LeafRule, Rules, suggest_rules
from parity.carry.ledger import jax_variables

D = 6
X = np.random.RandomState(0).standard_normal((2, 5, D)).astype(np.float32)


@pytest.fixture(autouse=True)
def broadcasting() -> Iterator[None]:
    """Functions of users add a vector to every row."""
    with jax.numpy_rank_promotion("allow"):
        yield


class Function(nnx.Module):
    """A function of tensors, as a module: `a.b` may name one."""

    def __init__(self, function: Callable[..., Any], **shapes: tuple[int, ...]) -> None:
        self.function = function
        for name, shape in shapes.items():
            setattr(self, name, nnx.Param(jnp.ones(shape)))

    def __call__(self, x: jax.Array) -> Any:
        return self.function(x, **{name: v[...] for name, v in vars(self).items() if isinstance(v, nnx.Variable)})


class TorchMlp(torch.nn.Module):
    """Two square matrices in a row, which only their places tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = torch.nn.Linear(D, D), torch.nn.Linear(D, D)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(torch.tanh(self.one(x)))


def outputs_agree(torch_model: torch.nn.Module, jax_model: nnx.Module, rules: Rules, x: np.ndarray = X) -> bool:
    parity.randomize(torch_model, seed=5)
    parity.torch_to_jax(torch_model, jax_model, rules=rules)
    with torch.no_grad():
        expected = torch_model(torch.from_numpy(x)).numpy()
    return bool(parity.rel_f(np.asarray(jax_model(jnp.asarray(x))), expected) < 1e-5)


@pytest.mark.parametrize("transposed", [False, True])
def test_square_matrices_are_told_apart_and_their_layout_is_found(transposed: bool):
    def function(x, a, b, c, d):
        left, right = (d.T, a.T) if transposed else (d, a)
        return jnp.tanh(x @ left + b) @ right + c

    model = Function(function, a=(D, D), b=(D,), c=(D,), d=(D, D))
    torch_model = TorchMlp()
    rules = suggest_rules(torch_model, model, X)
    axes = None if transposed else (1, 0)
    assert set(rules.tensors) == {
        LeafRule("one.weight", "d", axes),
        LeafRule("one.bias", "b"),
        LeafRule("two.weight", "a", axes),
        LeafRule("two.bias", "c"),
    }
    assert outputs_agree(torch_model, model, rules)


def test_another_module_name_is_one_rename():
    class Jax(nnx.Module):
        def __init__(self) -> None:
            self.layers = nnx.List([nnx.Linear(D, D, rngs=nnx.Rngs(0)) for _ in range(4)])

        def __call__(self, x):
            for layer in self.layers:
                x = jnp.tanh(layer(x))
            return x

    class Torch(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.h = torch.nn.ModuleList([torch.nn.Linear(D, D) for _ in range(4)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.h:
                x = torch.tanh(layer(x))
            return x

    rules = suggest_rules(Torch(), Jax(), X)
    assert len(rules.rename) == 1
    assert not rules.tensors
    assert outputs_agree(Torch(), Jax(), rules)


def test_fused_attention_of_pytorch():
    class Torch(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = torch.nn.MultiheadAttention(D, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.attn(x, x, x, need_weights=False)[0]

    class Jax(nnx.Module):
        def __init__(self) -> None:
            self.mix = nnx.MultiHeadAttention(2, D, decode=False, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.mix(x)

    rules = suggest_rules(Torch(), Jax(), X)
    assert outputs_agree(Torch(), Jax(), rules)


def test_a_flipped_kernel():
    class Torch(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = torch.nn.ConvTranspose1d(D, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.up(x.transpose(1, 2)).transpose(1, 2)

    class Jax(nnx.Module):
        def __init__(self) -> None:
            self.grow = nnx.ConvTranspose(D, 4, 3, padding="VALID", rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.grow(x)

    rules = suggest_rules(Torch(), Jax(), X)
    assert rules == Rules(rename={r"^up\.": "grow."}) or outputs_agree(Torch(), Jax(), rules)


def test_tensors_that_no_output_tells_apart_are_ambiguous():
    model = Function(lambda x, a, b, w: x @ w + a + b, a=(D,), b=(D,), w=(D, D))

    class Torch(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.more = torch.nn.Linear(D, D), torch.nn.Parameter(torch.ones(D))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x) + self.more

    with pytest.raises(ValueError, match="ambiguous") as error:
        suggest_rules(Torch(), model, X)
    assert all(f"{name} [{D}]" in str(error.value) for name in ("fc.bias", "more", "a", "b"))
    assert 'LeafRule("fc.weight", "w", (1, 0))' in str(error.value)


def test_equal_numbers_tell_apart_what_no_output_does():
    """Two biases that are added to each other, and a matrix without effect."""
    model = Function(lambda x, a, b, w, rest: x @ w + a + b + 0 * rest[0], a=(D,), b=(D,), w=(D, D), rest=(D, D))

    class Torch(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.more = torch.nn.Linear(D, D), torch.nn.Parameter(torch.randn(D))
            self.unused = torch.nn.Linear(D, D, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x) + self.more

    torch_model = Torch()
    partners = {"b": "fc.bias", "a": "more", "rest": "unused.weight"}
    for name, other in partners.items():
        jax_variables(model)[name].set_value(jnp.asarray(torch_model.state_dict()[other].numpy()))
    rules = suggest_rules(torch_model, model, X)
    ledger = parity.build_ledger(torch_model, model, rules)
    assert {(entry.jax, entry.torch, entry.axes) for entry in ledger} == {
        ("w", "fc.weight", (1, 0)),
        *((name, other, None) for name, other in partners.items()),
    }


def test_exchangeable_branches_are_paired_consistently():
    def function(x, a, b, c, d):
        return jnp.tanh(x @ a) @ b + jnp.tanh(x @ c) @ d

    class Torch(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left = torch.nn.Sequential(
                torch.nn.Linear(D, D, bias=False), torch.nn.Tanh(), torch.nn.Linear(D, D, bias=False)
            )
            self.right = torch.nn.Sequential(
                torch.nn.Linear(D, D, bias=False), torch.nn.Tanh(), torch.nn.Linear(D, D, bias=False)
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.left(x) + self.right(x)

    model = Function(function, a=(D, D), b=(D, D), c=(D, D), d=(D, D))
    assert outputs_agree(Torch(), model, suggest_rules(Torch(), model, X))


def test_what_has_no_effect_and_no_counterpart():
    model = Function(lambda x, a, b, c, d: jnp.tanh(x @ a + b) @ c + d, a=(D, D), b=(D,), c=(D, D), d=(D,))
    torch_model = TorchMlp()
    torch_model.register_buffer("table", torch.arange(9.0))
    torch_model.register_buffer("index", torch.arange(3))
    rules = suggest_rules(torch_model, model, X)
    assert rules.torch_only == ["table", "index"]
    assert outputs_agree(torch_model, model, rules)


def test_models_that_differ_get_no_rules():
    model = Function(lambda x, a, b, c, d: jnp.sin(x @ a + b) @ c + d, a=(D, D), b=(D,), c=(D, D), d=(D,))
    with pytest.raises(ValueError, match=r"no rules can be proposed: .* the outputs differ by"):
        suggest_rules(TorchMlp(), model, X)


def test_a_tensor_too_many_is_named():
    model = Function(
        lambda x, a, b, c, d, e: jnp.tanh(x @ a + b) @ c + d + e[0], a=(D, D), b=(D,), c=(D, D), d=(D,), e=(3,)
    )
    with pytest.raises(ValueError, match=r"1 of \(3,\) such as e only in JAX"):
        suggest_rules(TorchMlp(), model, X)


def test_the_models_are_not_changed():
    torch_model, model = (
        TorchMlp(),
        Function(lambda x, a, b, c, d: jnp.tanh(x @ a + b) @ c + d, a=(D, D), b=(D,), c=(D, D), d=(D,)),
    )
    before = {n: x.clone() for n, x in torch_model.state_dict().items()}
    suggest_rules(torch_model, model, X)
    assert all(torch.equal(before[n], x) for n, x in torch_model.state_dict().items())
    assert all(
        not x.requires_grad or isinstance(x, torch.nn.Parameter)
        for x in torch_model.state_dict(keep_vars=True).values()
    )
    assert all((np.asarray(v[...]) == 1).all() for v in jax_variables(model).values())


def test_the_error_of_a_check_names_the_function():
    model = Function(lambda x, a, b, c, d: x, a=(D, D), b=(D,), c=(D, D), d=(D,))
    with pytest.raises(ValueError, match=r"parity\.suggest_rules\(torch_model, jax_model, inputs\) proposes the rules"):
        parity.check(TorchMlp(), model, X)


def test_complex_tensors_are_refused():
    torch_model = TorchMlp()
    torch_model.register_buffer("wave", torch.zeros(3, dtype=torch.complex64))
    model = Function(lambda x, a, b, c, d: x, a=(D, D), b=(D,), c=(D, D), d=(D,))
    with pytest.raises(ValueError, match="wave is complex"):
        suggest_rules(torch_model, model, X)


@pytest.mark.parametrize("layer", [True, False])
def test_a_square_matrix_without_effect(layer: bool):
    """Its layout is known if its layer is; otherwise it is said to be unknown."""

    class Torch(TorchMlp):
        def __init__(self) -> None:
            super().__init__()
            self.unused = torch.nn.Linear(D, D, bias=False)

    class Jax(nnx.Module):
        def __init__(self) -> None:
            self.a, self.b = nnx.Linear(D, D, rngs=nnx.Rngs(0)), nnx.Linear(D, D, rngs=nnx.Rngs(0))
            self.rest = nnx.Linear(D, D, use_bias=False, rngs=nnx.Rngs(0)) if layer else nnx.Param(jnp.ones((D, D)))

        def __call__(self, x):
            return self.b(jnp.tanh(self.a(x)))

    if layer:
        assert outputs_agree(Torch(), Jax(), suggest_rules(Torch(), Jax(), X))
    else:
        with pytest.raises(ValueError, match=r"unused\.weight \[6, 6\] of PyTorch, whose layout is unknown"):
            suggest_rules(Torch(), Jax(), X)
