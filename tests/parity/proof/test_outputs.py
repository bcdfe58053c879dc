"""Models as they are called: other signatures on either side, and outputs with names."""

from __future__ import annotations

import collections
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
from parity import Inputs, Report

X = np.random.RandomState(0).standard_normal((3, 6))


class ModelOutput(collections.OrderedDict):  # type: ignore[type-arg]
    """As Hugging Face's: a dataclass that is a mapping of those of its fields that are not None."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if getattr(self, field.name) is not None:
                self[field.name] = getattr(self, field.name)

    def __getitem__(self, key: Any) -> Any:
        return dict(self.items())[key] if isinstance(key, str) else tuple(self.values())[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def __setattr__(self, key: str, value: Any) -> None:
        if value is not None and key in self.keys():
            super().__setitem__(key, value)
        super().__setattr__(key, value)

    def __reduce__(self) -> Any:
        make, _, *rest = tuple(super().__reduce__())
        return (make, tuple(getattr(self, field.name) for field in dataclasses.fields(self)), *rest)  # type: ignore[arg-type]


@dataclasses.dataclass
class LanguageModelOutput(ModelOutput):
    logits: Any = None
    hidden_states: Any = None
    attentions: Any = None


class Named(NamedTuple):
    logits: Any
    hidden_states: Any


class TorchModel(torch.nn.Module):
    """Returns what `result` makes of logits (3, 4) and states (3, 5)."""

    def __init__(self, result: Callable[..., Any]) -> None:
        super().__init__()
        self.head, self.state, self.result = torch.nn.Linear(5, 4), torch.nn.Linear(6, 5), result

    def forward(self, x: torch.Tensor, mask: Any = None, ids: Any = None, options: Any = None) -> Any:
        x = x if mask is None else x * mask
        x = x if ids is None else x[:, ids]
        x = x if options is None else options["shift"] + x * (2 if options["double"] else 1)
        state = self.state(x)
        return self.result(self.head(state), state)


class JaxModel(nnx.Module):
    def __init__(self, result: Callable[..., Any]) -> None:
        rngs = nnx.Rngs(0)
        self.head, self.state, self.result = nnx.Linear(5, 4, rngs=rngs), nnx.Linear(6, 5, rngs=rngs), result

    def __call__(self, x: jax.Array, mask: Any = None, ids: Any = None, options: Any = None) -> Any:
        x = x if mask is None else x * mask
        x = x if ids is None else x[:, ids]
        x = x if options is None else options["shift"] + x * (2 if options["double"] else 1)
        state = self.state(x)
        return self.result(self.head(state), state)


def checked(ours: Callable[..., Any], theirs: Callable[..., Any], inputs: Any = X, **options: Any) -> Report:
    torch_model, jax_model = TorchModel(ours), JaxModel(theirs)
    parity.torch_to_jax(torch_model, jax_model)
    return parity.check(torch_model, jax_model, inputs, **options)


def a_dict(logits: Any, state: Any) -> Any:
    return {"hidden_states": (state,), "logits": logits}


def a_model_output(logits: Any, state: Any) -> Any:
    return LanguageModelOutput(logits, (state,))


def a_named_tuple(logits: Any, state: Any) -> Any:
    return Named(logits, [state])


def a_tuple(logits: Any, state: Any) -> Any:
    return logits, None, (state,)


NAMES = [a_dict, a_model_output, a_named_tuple]


@pytest.mark.parametrize("theirs", NAMES)
@pytest.mark.parametrize("ours", NAMES)
def test_names_align_whatever_the_container(ours: Callable[..., Any], theirs: Callable[..., Any]) -> None:
    report = checked(ours, theirs)
    assert report.passed, str(report)
    assert not report.notes


@pytest.mark.parametrize(
    ("ours", "theirs"), [(a_model_output, a_tuple), (a_tuple, a_model_output), (a_tuple, a_named_tuple)]
)
def test_else_they_align_by_order_and_it_is_said(ours: Callable[..., Any], theirs: Callable[..., Any]) -> None:
    loss = parity.Loss("logits", lambda out: out[0].square().sum(), lambda out: (out[0] ** 2).sum())
    report = checked(ours, theirs, loss=loss)
    assert report.passed, str(report)
    assert "some outputs have names on one side only: they are aligned by order" in report.notes
    # hidden_states comes first in the alphabet, and second in order: here the order is wrong.
    assert not checked(ours, lambda a, b: theirs(2 * a, b)).passed


def test_a_difference_is_reported_by_name() -> None:
    report = checked(a_model_output, lambda logits, state: a_dict(logits, 2 * state))
    rows = [row for row in report.failures if row.kind == "output" and row.precision == "float64"]
    assert {row.note for row in rows} == {"different: hidden_states[0] (relF 1.0e+00); equal: logits"}


def test_an_output_that_one_side_lacks() -> None:
    report = checked(a_model_output, lambda logits, state: {"logits": logits})
    (row,) = report.failures
    assert row.kind == "structure"
    assert row.note == (
        "the output holds 'hidden_states', 'logits' in PyTorch, 'logits' in JAX "
        "(choose what is compared: torch_call=, jax_call=)"
    )
    left_out = checked(
        a_model_output,
        lambda logits, state: {"logits": logits},
        torch_call=lambda model, x: {"logits": model(x)["logits"]},
    )
    assert left_out.passed, str(left_out)


@pytest.mark.parametrize("level", ["gradients", "train"])
def test_other_signatures_by_two_functions(level: str) -> None:
    def torch_call(model: Any, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return model(x, mask=mask).logits

    def jax_call(model: Any, x: jax.Array, mask: jax.Array) -> jax.Array:
        return model(x * mask)[1]

    options = {"torch_call": torch_call, "jax_call": jax_call, "level": level}
    inputs = Inputs(X, mask=np.array([[True], [True], [False]]))
    report = checked(a_model_output, lambda logits, state: (state, logits), inputs, **options)
    assert report.passed, str(report)
    assert report.settings["torch_model"] == "TorchModel"
    wrong = options | {"jax_call": lambda model, x, mask: model(x)[1]}
    report = checked(a_model_output, lambda logits, state: (state, logits), inputs, **wrong)
    assert not report.passed
    assert report.first_divergence == "the model"


def test_an_adapter_is_called_with_its_weights() -> None:
    torch_model = TorchModel(a_model_output)
    state, head = (
        {"weight": jnp.asarray(layer.weight.detach().numpy()), "bias": jnp.asarray(layer.bias.detach().numpy())}
        for layer in (torch_model.state, torch_model.head)
    )

    def linear(params: Any, x: jax.Array) -> jax.Array:
        return x @ params["weight"].T + params["bias"][None]

    def forward(params: Any, x: jax.Array) -> Any:
        state = linear(params["state"], x)
        return {"everything": (state, linear(params["head"], state))}

    report = parity.check(
        torch_model,
        parity.function(forward, {"state": state, "head": head}),
        X,
        torch_call=lambda model, x: model(x).logits,
        jax_call=lambda model, x: model(x)["everything"][1],
    )
    assert report.passed, str(report)


@pytest.mark.parametrize(
    "inputs",
    [
        Inputs(X, mask=None),
        Inputs(X, mask=np.array([[1.0], [0.0], [1.0]])),
        Inputs(X, ids=np.array([5, 4, 3, 2, 1, 0])),
        Inputs(X, options={"shift": np.ones((3, 6)), "double": True}),
        Inputs(X, None, np.arange(6), {"double": False, "shift": 0.5}),
        {"x": X, "mask": np.ones((3, 6), bool)},
    ],
)
def test_inputs_of_every_kind(inputs: Any) -> None:
    report = checked(a_model_output, a_dict, inputs, level="forward")
    assert report.passed, str(report)


def test_an_input_that_jax_ignores() -> None:
    inputs = Inputs(X, None, ids=np.array([5, 4, 3, 2, 1, 0]))
    report = checked(a_dict, a_dict, inputs, level="forward", jax_call=lambda model, x, mask, ids: model(x, mask))
    assert not report.passed
    assert {row.name for row in report.failures if row.mode == "forced" and row.kind == "calls"} == {"state"}
