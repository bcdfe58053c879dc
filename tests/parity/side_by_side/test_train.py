"""`parity.train` on a small pair: what is compared, what is named, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import parity

LR = 0.05


class TorchNet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm = torch.nn.Linear(5, 8), torch.nn.BatchNorm1d(8)
        self.drop, self.fc2 = torch.nn.Dropout(0.5), torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.drop(torch.tanh(self.norm(self.fc1(x)))))


class JaxNet(nnx.Module):
    """`momentum` is that of BatchNorm, whose variance flax keeps biased."""

    def __init__(self, momentum: float = 0.9) -> None:
        rngs = nnx.Rngs(0)
        self.fc1 = nnx.Linear(5, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=momentum, epsilon=1e-5, rngs=rngs)
        self.drop, self.fc2 = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(self.drop(nnx.tanh(self.norm(self.fc1(x)))))


DRAW = np.random.RandomState(0)
BATCHES = [(DRAW.standard_normal((6, 5)), DRAW.randint(0, 3, 6)) for _ in range(4)]


def sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), LR, momentum=0.9)


def trained(torch_optimizer: Any = sgd, tx: Any = None, **options: Any) -> parity.TrainReport:
    torch.manual_seed(0)
    torch_model, jax_model = TorchNet(), JaxNet()
    parity.torch_to_jax(torch_model, jax_model)
    given = {"batches": BATCHES, "steps": 5, "training": False, **options}
    tx = optax.sgd(LR, 0.9) if tx is None else tx
    return parity.train(
        torch_model, jax_model, given.pop("batches"), torch_optimizer=torch_optimizer, optax=tx, **given
    )


def test_right_loops_are_equal(tmp_path: Any):
    report = trained()
    assert report.passed
    assert (report.first_divergence, report.cause, report.failures) == (None, None, ())
    assert "training in float64, 5 steps: EQUAL" in str(report)
    assert len(report.distance) == len(report.loss_torch) == 5
    assert {row.stage for row in report.rows} == {"loss", "gradient", "update", "optimizer state"}
    payload = json.loads(report.to_json(tmp_path / "report.json"))
    assert payload == json.loads((tmp_path / "report.json").read_text())
    assert payload["passed"] is True
    assert len(payload["rows"]) == len(report.rows)


def test_running_statistics_are_compared_in_training_mode():
    """flax's are biased, so they differ; everything else is equal, with dropout off."""
    report = trained(training=True)
    assert [row.stage for row in report.failures] == ["buffer"]
    assert report.first_divergence == "step 5: buffer of norm.running_var"
    assert "dropout was off on both sides" in report.notes


RMS = torch.optim.RMSprop
OTHER: dict[str, tuple[Callable[[Any], Any], Any, str]] = {
    "eps of rmsprop": (lambda p: RMS(p, LR, eps=1e-4), optax.rmsprop(LR, 0.99, 1e-4), "epsilon"),
    "start of rmsprop": (
        lambda p: RMS(p, LR),
        optax.rmsprop(LR, 0.99, eps_in_sqrt=False, initial_scale=1.0),
        "first second moment",
    ),
    "not centered": (
        lambda p: RMS(p, LR, centered=True),
        optax.rmsprop(LR, 0.99, eps_in_sqrt=False),
        "centered",
    ),
    "eps of adagrad": (
        lambda p: torch.optim.Adagrad(p, LR, eps=1e-6, initial_accumulator_value=0.1),
        optax.adagrad(LR, 0.1, 1e-6),
        "epsilon",
    ),
    "optax's amsgrad": (lambda p: torch.optim.Adam(p, LR, amsgrad=True), optax.amsgrad(LR), "amsgrad"),
    "optax's weight decay": (lambda p: torch.optim.AdamW(p, LR), optax.adamw(LR), "weight decay"),
    "nadam": (lambda p: torch.optim.Adam(p, LR), optax.nadam(LR), "Nesterov momentum"),
    "beta": (lambda p: torch.optim.Adam(p, LR), optax.adam(LR, b2=0.95), "betas"),
    "no dampening": (
        lambda p: torch.optim.SGD(p, LR, 0.9, dampening=0.2),
        optax.sgd(LR, 0.9),
        "dampening",
    ),
    "learning rate": (lambda p: torch.optim.SGD(p, LR), optax.sgd(LR / 2), "learning rate"),
}


@pytest.mark.parametrize(("make", "tx", "switch"), OTHER.values(), ids=OTHER)
def test_mistakes_of_other_optimizers_are_named(make: Callable[[Any], Any], tx: Any, switch: str):
    report = trained(lambda model: make(model.parameters()), tx)
    assert not report.passed
    assert report.cause is not None, str(report)
    assert report.cause.switch == switch
    assert f"cause: {switch}: {report.cause.description}" in str(report)


def test_a_loss_that_is_summed_in_jax():
    def summed(output: jax.Array, target: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(output, target).sum()

    report = trained(loss=(torch.nn.functional.cross_entropy, summed))
    assert report.first_divergence == "step 1: loss"
    assert report.cause is not None
    assert report.cause.description.endswith("PyTorch's loss is their mean, JAX's their sum")


def test_what_is_no_known_mistake_is_found_and_not_named():
    report = trained(tx=optax.chain(optax.scale_by_lion(), optax.scale(-LR)))
    assert not report.passed
    assert report.cause is None
    assert "cause: none of the known ones takes JAX's steps" in str(report)


def multi_steps(**options: Any) -> Callable[[Any], Any]:
    return lambda params: optax.MultiSteps(optax.sgd(LR, 0.9), 2, accumulator_dtype="float64", **options)


def test_optax_accumulates():
    options = {"accumulation": 2, "jax_reduction": "optax"}
    assert trained(tx=multi_steps(), **options).passed
    cause = trained(tx=multi_steps(use_grad_mean=False), **options).cause
    assert cause is not None
    assert cause.switch == "gradient accumulation"


def test_muon_is_compared_in_float64():
    """With the transformation that `optimizer_to_optax` makes; PyTorch's cast to bfloat16 is taken away."""
    torch.manual_seed(0)
    torch_model, jax_model = torch.nn.Linear(4, 3, bias=False), nnx.Linear(4, 3, use_bias=False, rngs=nnx.Rngs(0))
    ledger = parity.torch_to_jax(torch_model, jax_model)

    def muon(model: torch.nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Muon(model.parameters(), LR)

    tx, _ = parity.optimizer_to_optax(muon(torch_model), torch_model, nnx.state(jax_model, nnx.Param), ledger)
    batches = [(DRAW.standard_normal((6, 4)), DRAW.randint(0, 3, 6))]
    report = parity.train(torch_model, jax_model, batches, torch_optimizer=muon, optax=tx, steps=3)
    assert report.passed, str(report)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "steps": ({"steps": 0}, "steps has to be a whole number from 1, got 0"),
    "reduction": ({"jax_reduction": "max"}, "jax_reduction 'max' is not one of mean, sum, optax"),
    "batches": ({"batches": []}, "there are no batches"),
    "batch": ({"batches": [BATCHES[0][0]]}, r"batch 0 has to be a pair of \(inputs, target\)"),
    "average": ({"jax_ema": lambda average, params: params}, "needs both torch_ema and jax_ema"),
    "optimizer": ({"torch_optimizer": lambda model: None}, "has to return a torch.optim.Optimizer, not NoneType"),
    "other model": ({"torch_optimizer": lambda model: sgd(TorchNet())}, "of the model that it is given"),
    "optax": ({"tx": "adam"}, "optax has to be an optax transformation"),
    "multi steps": ({"tx": optax.MultiSteps(optax.sgd(LR), 2)}, 'pass jax_reduction="optax"'),
    "still": ({"torch_optimizer": lambda model: torch.optim.SGD(model.parameters(), 0.0)}, "no parameter moved"),
    "loss": ({"loss": (lambda output, target: output, lambda output, target: output.sum())}, "PyTorch's loss has to"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_run_is_refused(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message) as error:
        trained(**options)
    assert "\n" not in str(error.value)
