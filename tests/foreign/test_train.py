"""`parity.train` on foreign pairs: right loops are equal, and every planted mistake is found and named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
import torch

import parity
from tests.foreign.pairs import gpt_linen, llama_function, moe_nnx
from tests.foreign.pairs.common import ForeignPair

PAIRS = (gpt_linen.PAIR, moe_nnx.PAIR, llama_function.PAIR)
STEPS, LR, DECAY, MOMENTUM, LIMIT = 20, 1e-2, 0.1, 0.9, 0.5


def first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output


LOSS = (
    lambda output, target: torch.nn.functional.cross_entropy(first(output).flatten(0, -2), target.flatten()),
    lambda output, target: optax.softmax_cross_entropy_with_integer_labels(first(output), target).mean(),
)


def factor(step: Any) -> Any:
    """Learning rate by the step: a warm-up, then a slow fall."""
    return (step + 1) / 5 if step < 5 else 1 / (1 + 0.05 * (step - 5))


def schedule(count: Any) -> Any:
    return LR * jnp.where(count < 5, (count + 1) / 5, 1 / (1 + 0.05 * (count - 5)))


def scheduler(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def clip_norm(params: Any) -> None:
    torch.nn.utils.clip_grad_norm_(params, LIMIT)


def as_pytorch_clips(limit: float) -> optax.GradientTransformation:
    """Clipping by the norm of all gradients with PyTorch's 1e-6."""

    def update(updates: Any, _: Any) -> Any:
        scale = jnp.minimum(1.0, limit / (optax.tree.norm(updates) + 1e-6))
        return jax.tree.map(lambda g: scale * g, updates)

    return optax.stateless(update)


def adam_without_correction() -> optax.GradientTransformation:
    def init(params: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state[0], updates)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, state[1], updates)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + 1e-8), m, v), (m, v)

    return optax.GradientTransformation(init, update)


def adamw(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), LR, weight_decay=DECAY)


def adamw_in_groups(model: torch.nn.Module) -> torch.optim.Optimizer:
    params = list(model.parameters())
    vectors = {"params": [p for p in params if p.ndim == 1], "weight_decay": 0.0}
    return torch.optim.AdamW([{"params": [p for p in params if p.ndim > 1]}, vectors], LR, weight_decay=DECAY)


def sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM)


def masked(decay: float) -> Callable[[Any], Any]:
    """AdamW that decays matrices: JAX may hold the biases of a stack as one matrix, so by name too."""

    def make(params: Mapping[str, Any]) -> Any:
        vector = ("bias", "scale", "norm")
        mask = {name: x.ndim > 1 and not any(word in name for word in vector) for name, x in params.items()}
        return optax.adamw(LR, weight_decay=decay, mask=mask)

    return make


class Average:
    """A moving average from the first parameters on, which AveragedModel replaces at its first update."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.state = {name: x.detach().clone() for name, x in model.state_dict().items()}

    def update(self, model: torch.nn.Module) -> None:
        for name, x in model.state_dict().items():
            self.state[name] = 0.9 * self.state[name] + 0.1 * x


EMA: dict[str, Any] = {
    "torch_ema": Average,
    "jax_ema": lambda average, params: optax.incremental_update(params, average, 0.1),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A right training, and the change that makes it wrong; `named` are the causes that may be given."""

    torch: Callable[[torch.nn.Module], torch.optim.Optimizer]
    right: Any
    wrong: Any = None
    named: tuple[str, ...] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    change: Mapping[str, Any] = dataclasses.field(default_factory=dict)


ADAMW = optax.adamw(LR, weight_decay=DECAY)
SGD = optax.sgd(LR, MOMENTUM)
CLIPPED = optax.chain(as_pytorch_clips(LIMIT), SGD)

CASES: dict[str, Case] = {
    "bias correction": Case(
        adamw,
        ADAMW,
        optax.chain(adam_without_correction(), optax.add_decayed_weights(DECAY), optax.scale(-LR)),
        ("bias correction",),
    ),
    "eps inside the root": Case(
        adamw, ADAMW, optax.adamw(LR, eps=0.0, eps_root=1e-8, weight_decay=DECAY), ("epsilon",)
    ),
    "L2": Case(
        adamw, ADAMW, optax.chain(optax.add_decayed_weights(DECAY), optax.adam(LR)), ("decoupled weight decay",)
    ),
    "decay mask": Case(adamw_in_groups, masked(DECAY), ADAMW, ("weight decay mask",)),
    "schedule": Case(
        adamw,
        optax.adamw(schedule, weight_decay=DECAY),
        optax.adamw(lambda count: schedule(count + 1), weight_decay=DECAY),
        ("schedule shift",),
        {"torch_scheduler": scheduler},
    ),
    "clip by value": Case(
        sgd, CLIPPED, optax.chain(optax.clip(LIMIT), SGD), ("gradient clipping",), {"torch_clip": clip_norm}
    ),
    "clip without 1e-6": Case(
        sgd,
        CLIPPED,
        optax.chain(optax.clip_by_global_norm(LIMIT), SGD),
        ("epsilon of clipping",),
        {"torch_clip": clip_norm},
    ),
    "accumulated sum": Case(sgd, SGD, SGD, ("gradient accumulation",), {"accumulation": 2}, {"jax_reduction": "sum"}),
    "average before the step": Case(adamw, ADAMW, ADAMW, ("moving average",), EMA, {"jax_ema_at": "before"}),
    "dampening": Case(
        sgd, SGD, optax.chain(optax.ema(MOMENTUM, debias=False), optax.scale(-LR)), ("dampening", "learning rate")
    ),
    "nesterov": Case(sgd, SGD, optax.sgd(LR, MOMENTUM, nesterov=True), ("Nesterov momentum",)),
    "momentum of the steps": Case(
        sgd,
        optax.sgd(schedule, MOMENTUM),
        optax.chain(optax.scale_by_learning_rate(schedule), optax.trace(MOMENTUM)),
        ("momentum",),
        {"torch_scheduler": scheduler},
    ),
}


def trained(pair: ForeignPair, case: Case, *, wrong: bool) -> parity.TrainReport:
    model = pair.torch_model(0)
    batches = [(pair.inputs(i), targets(pair, model, i)) for i in range(3)]
    return parity.train(
        model,
        pair.jax_side(model, "").adapter(),
        batches,
        torch_optimizer=case.torch,
        optax=case.wrong if wrong else case.right,
        loss=LOSS,
        steps=STEPS,
        **{**case.options, **(case.change if wrong else {})},
    )


def targets(pair: ForeignPair, model: torch.nn.Module, seed: int) -> Any:
    """Return random classes for every row of the output."""
    with torch.no_grad():
        tensors = map(torch.from_numpy, pair.inputs(seed))
        output = first(model(*(x.float() if x.is_floating_point() else x for x in tensors)))
    return torch.randint(output.shape[-1], output.shape[:-1], generator=torch.Generator().manual_seed(seed)).numpy()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_mistakes_are_named(pair: ForeignPair, case: Case):
    report = trained(pair, case, wrong=True)
    assert not report.passed
    assert report.first_divergence is not None
    assert report.cause is not None, str(report)
    assert report.cause.switch in case.named, str(report)
    assert report.cause.error_after <= 1e-10 < report.cause.error_before


@pytest.mark.parametrize(
    "name", ["decay mask", "schedule", "clip by value", "accumulated sum", "average before the step"]
)
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_right_loops_are_equal(pair: ForeignPair, name: str):
    report = trained(pair, CASES[name], wrong=False)
    assert report.passed, str(report)
    assert report.first_divergence is None
    assert report.cause is None
