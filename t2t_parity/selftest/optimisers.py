"""Mistakes in optimizers and learning rates: those of PyTorch compared with a wrongly configured optax."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from parity.causes.training.steps import GATE, AdamW, State, TrainingCause, optimizer_cause, series_cause, travelled
from parity.measure.gates import Gates, norm, relative

STEPS = 6
SHAPES = {"kernel": (6, 5), "bias": (5,), "scale": (6,), "conv": (4, 3, 2, 2)}
MATRICES = frozenset({"kernel", "conv"})
SETTINGS = AdamW(lr=1e-2, weight_decay=1e-2, decayed=MATRICES, clip=1.0, ema=0.9)


@dataclasses.dataclass(frozen=True)
class Trial:
    """A mistake without a model; `run` measures it and returns (error, gate, cause)."""

    name: str
    group: str
    cause: str | None
    run: Callable[[], tuple[float, float, TrainingCause | None]]


def _draws() -> tuple[State, list[State]]:
    """Draw parameters, and gradients of very different sizes for all steps, so that clipping is active in some only."""
    draw = np.random.RandomState(0)
    start = {name: draw.standard_normal(shape) for name, shape in SHAPES.items()}
    return start, [
        {name: draw.standard_normal(shape) * size for name, shape in SHAPES.items()}
        for size in np.geomspace(0.01, 1.0, STEPS)
    ]


def torch_state(settings: AdamW, start: State, gradients: Sequence[State]) -> dict[str, np.ndarray]:
    """Run all steps of `torch.optim.AdamW` with `clip_grad_norm_`, and return the moving average."""
    params = {name: torch.nn.Parameter(torch.tensor(x, dtype=torch.float64)) for name, x in start.items()}
    average = {name: p.detach().clone() for name, p in params.items()}
    decayed = settings.decayed or frozenset()
    groups = [
        {
            "params": [p for name, p in params.items() if (name in decayed) == on],
            "weight_decay": on * settings.weight_decay,
        }
        for on in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=(settings.b1, settings.b2), eps=settings.eps)
    for given in gradients:
        for name, p in params.items():
            p.grad = torch.tensor(given[name], dtype=torch.float64)
        torch.nn.utils.clip_grad_norm_(params.values(), settings.clip or float("inf"))
        optimizer.step()
        for name, p in params.items():
            average[name] = (settings.ema or 0.0) * average[name] + (1 - (settings.ema or 0.0)) * p.detach()
    return {name: x.numpy() for name, x in average.items()}


def clip(limit: float, eps: float) -> optax.GradientTransformation:
    """Clip by global norm: as PyTorch for eps = 1e-6, as optax for 0."""

    def update(updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None):
        scale = jnp.minimum(1.0, limit / (optax.tree.norm(updates) + eps))
        return jax.tree.map(lambda g: g * scale, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def uncorrected() -> optax.GradientTransformation:
    """Adam without bias correction: moments are not divided by 1 - beta^t."""

    def init(params: optax.Params) -> tuple[optax.Params, optax.Params]:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return zeros, zeros

    def update(updates: optax.Updates, state: tuple, params: optax.Params | None = None):
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state[0], updates)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, state[1], updates)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + 1e-8), m, v), (m, v)

    return optax.GradientTransformation(init, update)


MASK = {name: name in MATRICES for name in SHAPES}
DECAY = optax.add_decayed_weights(1e-2, MASK)
RIGHT = optax.adamw(1e-2, weight_decay=1e-2, mask=MASK)


def jax_state(
    start: State,
    gradients: Sequence[State],
    optimizer: optax.GradientTransformation = RIGHT,
    clipping: optax.GradientTransformation | None = None,
    ema: float = 0.9,
) -> dict[str, np.ndarray]:
    """As `torch_state`, with optax; the defaults are correct."""
    optimizer = optax.chain(clip(1.0, 1e-6) if clipping is None else clipping, optimizer)
    with jax.enable_x64(True):
        params = {name: jnp.asarray(x) for name, x in start.items()}
        state, average = optimizer.init(params), params
        for given in gradients:
            updates, state = optimizer.update({name: jnp.asarray(g) for name, g in given.items()}, state, params)
            params = optax.apply_updates(params, updates)
            average = {name: ema * average[name] + (1 - ema) * params[name] for name in params}
        return {name: np.asarray(x) for name, x in average.items()}


def _optimizer(name: str, cause: str | None, make: Callable[[], dict]) -> Trial:
    """Create a trial in which `make` returns the wrong arguments of `jax_state`."""

    def run() -> tuple[float, float, TrainingCause | None]:
        start, gradients = _draws()
        wanted = torch_state(SETTINGS, start, gradients)
        given = jax_state(start, gradients, **make())
        return travelled(given, wanted, start), GATE, optimizer_cause(SETTINGS, start, gradients, given)

    return Trial(name, "optimiser", cause, run)


def _adamw(**options: object) -> Callable[[], dict]:
    settings: dict = {"learning_rate": 1e-2, "weight_decay": 1e-2, "mask": MASK, **options}
    return lambda: {"optimizer": optax.adamw(**settings)}


def _coupled() -> dict:
    return {"optimizer": optax.chain(DECAY, optax.adam(1e-2))}


def _eps_inside() -> dict:
    rate = optax.scale_by_learning_rate(1e-2)
    return {"optimizer": optax.chain(optax.scale_by_adam(eps=0.0, eps_root=1e-8), DECAY, rate)}


def _uncorrected() -> dict:
    return {"optimizer": optax.chain(uncorrected(), DECAY, optax.scale_by_learning_rate(1e-2))}


def _constant_decay() -> dict:
    rate = optax.scale_by_learning_rate(1e-2)
    shrink = optax.add_decayed_weights(-1e-2, MASK)
    return {"optimizer": optax.chain(optax.scale_by_adam(), rate, shrink)}


OPTIMISERS = (
    _optimizer("optax's weight decay 1e-4", "weight decay", _adamw(weight_decay=1e-4)),
    _optimizer("decay joins the gradient", "coupled decay", _coupled),
    _optimizer("decay not times the learning rate", "decay by lr", _constant_decay),
    _optimizer("eps under the root", "optimiser eps", _eps_inside),
    _optimizer("eps 1e-6", "optimiser eps", _adamw(eps=1e-6)),
    _optimizer("b2 0.95", "betas", _adamw(b2=0.95)),
    _optimizer("moments not corrected", "bias correction", _uncorrected),
    _optimizer("biases decayed too", "decay mask", _adamw(mask=None)),
    _optimizer("Nesterov", "nesterov", _adamw(nesterov=True)),
    _optimizer("clipping without 1e-6", "gradient clipping", lambda: {"clipping": clip(1.0, 0.0)}),
    _optimizer("not clipped", "gradient clipping", lambda: {"clipping": optax.identity()}),
    _optimizer("moving average 0.99", "ema decay", lambda: {"ema": 0.99}),
)

EPOCHS, PEAK, LAST = 30, 5e-4, 1e-5


def torch_rates() -> list[float]:
    """Return the cosine schedule of PyTorch, one rate per epoch."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=EPOCHS, eta_min=LAST)
    rates = []
    for _ in range(EPOCHS):
        rates.append(float(scheduler.get_last_lr()[0]))
        optimizer.step()
        scheduler.step()
    return rates


def cosine(epoch: float, epochs: int = EPOCHS, last: float = LAST) -> float:
    """Return the rate of optax's cosine schedule at an epoch."""
    with jax.enable_x64(True):
        return float(optax.cosine_decay_schedule(PEAK, epochs, alpha=last / PEAK)(jnp.asarray(epoch, jnp.float64)))


def _schedule(name: str, cause: str | None, rate: Callable[[int], float]) -> Trial:
    def run() -> tuple[float, float, TrainingCause | None]:
        wanted, given = torch_rates(), [rate(epoch) for epoch in range(EPOCHS)]
        error = relative(norm(np.subtract(given, wanted)), norm(np.asarray(wanted)))
        return error, Gates().f64, series_cause(wanted, given)

    return Trial(name, "schedule", cause, run)


SCHEDULES = (
    _schedule("one epoch ahead", "schedule shift", lambda epoch: cosine(epoch + 1)),
    _schedule("one epoch behind", "schedule shift", lambda epoch: cosine(max(epoch - 1, 0))),
    _schedule("epochs counted twice", "schedule stretch", lambda epoch: cosine(2 * epoch, EPOCHS)),
    _schedule("twice the rate", "learning rate", lambda epoch: 2 * cosine(epoch)),
    _schedule("cosine to zero", None, lambda epoch: cosine(epoch, last=0.0)),
)

CORRECT = (
    _optimizer("optimiser", None, dict),
    _schedule("schedule", None, cosine),
)
"""Correct trials, which must not fail."""
