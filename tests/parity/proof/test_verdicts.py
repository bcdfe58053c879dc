"""What a check says of pairs that are wrong in more than a number, and of right ones that look odd."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import parity
from parity import Report, Rules

X = np.random.RandomState(0).standard_normal((3, 6))


class TorchInner(torch.nn.Module):
    def __init__(self, result: Callable[..., Any]) -> None:
        super().__init__()
        self.a, self.b, self.result = torch.nn.Linear(6, 4), torch.nn.Linear(6, 4), result

    def forward(self, x: torch.Tensor) -> Any:
        return self.result(self.a(x), self.b(x))


class Inner(nnx.Module):
    def __init__(self, result: Callable[..., Any]) -> None:
        rngs = nnx.Rngs(0)
        self.a, self.b, self.result = nnx.Linear(6, 4, rngs=rngs), nnx.Linear(6, 4, rngs=rngs), result

    def __call__(self, x: jax.Array) -> Any:
        return self.result(self.a(x), self.b(x))


class TorchOuter(torch.nn.Module):
    """Uses the first of what its inner module returns."""

    def __init__(self, result: Callable[..., Any], first: Callable[[Any], Any]) -> None:
        super().__init__()
        self.inner, self.first = TorchInner(result), first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(self.inner(x))


class Outer(nnx.Module):
    def __init__(self, result: Callable[..., Any], first: Callable[[Any], Any]) -> None:
        self.inner, self.first = Inner(result), first

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.first(self.inner(x))


def checked(torch_model: torch.nn.Module, jax_model: nnx.Module, inputs: Any = X, **options: Any) -> Report:
    parity.torch_to_jax(torch_model, jax_model)
    return parity.check(torch_model, jax_model, inputs, **options)


@dataclasses.dataclass
class Moments:
    mean: Any
    spread: Any = None


class Both(NamedTuple):
    spread: Any
    mean: Any


RIGHT: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "dict": (lambda a, b: {"mean": a, "spread": b}, lambda a, b: {"spread": b, "mean": a}),
    "dataclass": (Moments, lambda a, b: Both(b, a)),
    "nested": (lambda a, b: ({"x": [a, None]}, b), lambda a, b: [{"x": (a, None)}, b]),
    "None and a number": (lambda a, b: (a, None, 3), lambda a, b: (a, None, 3)),
}
WRONG: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "exchanged": (lambda a, b: {"mean": a, "spread": b}, lambda a, b: {"mean": b, "spread": a}),
    "other keys": (lambda a, b: {"mean": a, "spread": b}, lambda a, b: {"a": a, "b": b}),
    "fields exchanged": (Moments, lambda a, b: Moments(b, a)),
    "order": (lambda a, b: (a, b), lambda a, b: (b, a)),
    "count": (lambda a, b: (a, b), lambda a, b: (a,)),
    "None": (lambda a, b: (a, None), lambda a, b: (a, b)),
    "nesting": (lambda a, b: (a, (b,)), lambda a, b: (a, b)),
    "number": (lambda a, b: (a, 3), lambda a, b: (a, 4)),
    "no container": (lambda a, b: (a, None), lambda a, b: a),
}


@pytest.mark.parametrize("name", RIGHT)
def test_structures_that_agree(name: str) -> None:
    ours, theirs = RIGHT[name]
    report = checked(TorchInner(ours), Inner(theirs))
    assert report.passed, str(report)


@pytest.mark.parametrize("name", WRONG)
def test_structures_that_differ(name: str) -> None:
    ours, theirs = WRONG[name]
    report = checked(TorchInner(ours), Inner(theirs), level="forward")
    assert not report.passed
    assert report.first_divergence == "the model"


def test_a_structure_that_differs_inside_is_named_there() -> None:
    ours = TorchOuter(lambda a, b: {"mean": a, "spread": b}, lambda found: found["mean"])
    theirs = Outer(lambda a, b: {"mean": a, "other": b}, lambda found: found["mean"])
    report = checked(ours, theirs, level="forward")
    assert not report.passed
    assert report.first_divergence == "inner"
    assert "'mean', 'spread' in PyTorch, 'mean', 'other' in JAX" in report.brief()


# ---- layouts ----


class TorchTokens(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)


class Tokens(nnx.Module):
    def __init__(self, *axes: int) -> None:
        self.fc, self.axes = nnx.Linear(6, 5, rngs=nnx.Rngs(0)), axes

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc(x).transpose(self.axes)


@pytest.mark.parametrize("length", [7, 5])
def test_a_transposed_output_is_wrong_whatever_its_sides(length: int) -> None:
    x = np.random.RandomState(0).standard_normal((2, length, 6))
    report = checked(TorchTokens(), Tokens(0, 2, 1), x, level="forward")
    assert not report.passed
    for name in ("", "output 0"):
        told = checked(TorchTokens(), Tokens(0, 2, 1), x, level="forward", rules=Rules(layouts={name: (0, 2, 1)}))
        assert told.passed, str(told)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(torch.tanh, lambda x: jnp.tanh(x).swapaxes(1, 2)), (lambda x: x.mean(-1), lambda x: x.mean(1))],
)
def test_a_port_that_takes_one_axis_for_the_other_is_wrong(ours: Any, theirs: Any) -> None:
    """Though on transposed inputs it would be right: nothing says that these are signals (N C L)."""

    class TorchAxes(TorchTokens):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return ours(x * self.fc.weight.sum())

    class Axes(Tokens):
        def __call__(self, x: jax.Array) -> jax.Array:
            return theirs(x * self.fc.kernel[...].sum())

    x = np.random.RandomState(0).standard_normal((2, 4, 4))
    report = checked(TorchAxes(), Axes(), x, level="forward")
    assert not report.passed
    assert 'Rules(layouts={"input 0": (0, 2, 1)})' in " ".join(report.notes)
    assert checked(TorchAxes(), Axes(), x, level="forward", rules=Rules(layouts={"input 0": (0, 2, 1)})).passed


def test_a_signal_for_a_convolution_is_transposed() -> None:
    class TorchSignal(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv1d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x * 2).mean(-1)

    class Signal(nnx.Module):
        def __init__(self) -> None:
            self.conv = nnx.Conv(4, 4, (1,), rngs=nnx.Rngs(0))

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.conv(x * 2).mean(1)

    x = np.random.RandomState(0).standard_normal((2, 4, 4))
    assert checked(TorchSignal(), Signal(), x, level="forward").passed


class TorchMap(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(x)) + 1


class Map(nnx.Module):
    def __init__(self, *axes: int) -> None:
        self.conv, self.axes = nnx.Conv(3, 4, (1, 1), rngs=nnx.Rngs(0)), axes

    def __call__(self, x: jax.Array) -> jax.Array:
        return (jax.nn.relu(self.conv(x)) + 1).transpose(self.axes)


@pytest.mark.parametrize(
    ("axes", "passes"), [((0, 1, 2, 3), True), ((0, 3, 1, 2), True), ((0, 2, 1, 3), False), ((0, 3, 2, 1), False)]
)
@pytest.mark.parametrize("size", [(5, 6), (4, 4)])
def test_a_map_has_its_channels_second_or_last_and_nowhere_else(
    axes: tuple[int, ...], passes: bool, size: tuple[int, int]
) -> None:
    x = np.random.RandomState(0).standard_normal((2, 3, *size))
    report = checked(TorchMap(), Map(*axes), x, level="forward")
    assert report.passed == passes, str(report)


def test_an_input_of_rank_4_that_is_no_image() -> None:
    class TorchScores(TorchTokens):
        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            q = self.fc(x)[:, None]
            return (torch.softmax(q @ q.mT + mask, -1) @ q)[:, 0]

    class Scores(Tokens):
        def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
            q = self.fc(x)[:, None]
            return (jax.nn.softmax(q @ q.mT + mask, -1) @ q)[:, 0]

    draw = np.random.RandomState(0)
    inputs = draw.standard_normal((2, 4, 6)), draw.standard_normal((2, 1, 4, 4))
    report = checked(TorchScores(), Scores(), inputs, level="forward")
    assert report.passed, str(report)
    assert "JAX's model takes input 1 as it is" in report.notes


# ---- configuration, what never ran, what is frozen ----


def test_another_dtype_is_another_configuration() -> None:
    model = Tokens(0, 1)
    model.fc.dtype = jnp.bfloat16
    report = checked(TorchTokens(), model, X, level="forward")
    assert not report.passed
    assert report.verdict.startswith("DIFFERENT: the algorithm is equal, the configuration is not")
    assert "bfloat16 in JAX, float32 in PyTorch" in report.verdict


@pytest.mark.parametrize(
    ("ours", "theirs"), [(torch.float32, jnp.bool_), (torch.float32, jnp.int32), (torch.bool, jnp.int32)]
)
def test_a_mask_of_another_type_is_another_configuration(ours: Any, theirs: Any) -> None:
    def pair(dtype: Any) -> Report:
        return checked(
            TorchInner(lambda a, b: (a + b, (a > 0).to(ours))),
            Inner(lambda a, b: (a + b, (a > 0).astype(dtype))),
            level="forward",
        )

    assert not (report := pair(theirs)).passed
    assert report.verdict.startswith("DIFFERENT: the algorithm is equal, the configuration is not")
    assert pair({torch.float32: jnp.float32, torch.bool: jnp.bool_}[ours]).passed


def test_a_module_that_never_ran_is_no_pass() -> None:
    class TorchUnused(TorchTokens):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(5, 2)

    class Unused(Tokens):
        def __init__(self) -> None:
            super().__init__(0, 1)
            self.head = nnx.Linear(5, 2, rngs=nnx.Rngs(0))

    report = checked(TorchUnused(), Unused(), level="forward")
    assert not report.passed
    assert "head [not run" in report.brief()
    assert checked(TorchUnused(), Unused(), level="forward", rules=Rules(unpaired=["head"])).passed


def test_a_part_frozen_on_one_side_fails_on_request() -> None:
    frozen = TorchTokens()
    frozen.fc.requires_grad_(False)
    report = checked(frozen, Tokens(0, 1))
    assert report.passed, str(report)
    assert any(note.startswith("frozen in PyTorch alone: fc.weight, fc.bias") for note in report.notes)
    assert not checked(frozen, Tokens(0, 1), level="forward", same_trainable=True).passed


def test_a_float_input_without_a_gradient() -> None:
    class TorchGate(TorchTokens):
        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.fc(x) * (mask > 0.5)

    class Gate(Tokens):
        def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
            return self.fc(x) * (mask > 0.5)

    report = checked(TorchGate(), Gate(), (X, np.ones((3, 5))))
    assert report.passed, str(report)


def test_what_jax_cannot_run_is_one_line() -> None:
    class Keyword(Tokens):
        def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
            return self.fc(x)

    with pytest.raises(ValueError, match=r"JAX's model cannot be run on these inputs: TypeError: .*'train'"):
        checked(TorchTokens(), Keyword())
