"""A small pair of models that trains in both frameworks, and a run that changes from one to the other."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx

from parity import Ledger, build_ledger, rel_f, torch_to_jax
from parity.carry.convert import to_numpy, torch_arrays
from parity.optimizer_state.convert import ema_to_jax, ema_to_torch, optimizer_to_jax, optimizer_to_torch
from t2t_jax.state import merge_model, split_model
from t2t_jax.training.optim import adamw, decay_mask, update_ema
from t2t_torch.training.optim import Ema, param_groups
from tests.support.parity.pairs import carried

STEPS = 12
EMA_DECAY = 0.8


class TorchToy(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 4, 3)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(4, 5), torch.nn.Linear(5, 3, bias=False)])
        self.register_buffer("shift", torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.layers[0](torch.tanh(self.conv(x)).mean(dim=(2, 3))))
        return self.layers[1](x) + self.shift


class FlaxToy(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(2, 4, (3, 3), padding=0, rngs=rngs)
        first = nnx.Linear(4, 5, rngs=rngs)
        self.layers = nnx.List([first, nnx.Linear(5, 3, use_bias=False, rngs=rngs)])
        self.shift = nnx.Variable(jnp.ones(3))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.tanh(self.layers[0](jnp.tanh(self.conv(x)).mean(axis=(1, 2))))
        return self.layers[1](x) + self.shift[None]


def toy() -> tuple[torch.nn.Module, nnx.Module, Ledger]:
    """The same weights in float64 on both sides."""
    with jax.enable_x64(True):
        torch_model, jax_model = TorchToy().double(), FlaxToy()
        carried(torch_model, jax_model)
    return torch_model, jax_model, build_ledger(torch_model, jax_model)


def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.RandomState(step)
    return draws.standard_normal((3, 2, 6, 6)), draws.standard_normal((3, 3))


def rate(step: int) -> float:
    """Linear warm-up, then linear decay: no two steps share a rate."""
    return 0.02 * (step + 1) / 4 if step < 4 else 0.02 * (1 - step / 20)


def schedule(step: jax.Array) -> jax.Array:
    return jnp.asarray([rate(i) for i in range(STEPS)])[step]


def torch_adamw(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(param_groups(model, 0.1), lr=1.0)


def torch_sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, nesterov=True)


def jax_adamw(params: dict[str, jax.Array]) -> optax.GradientTransformation:
    return adamw(schedule, weight_decay=0.1, mask=decay_mask(params))


def jax_sgd(params: dict[str, jax.Array]) -> optax.GradientTransformation:
    del params
    return optax.chain(optax.clip_by_global_norm(1e9), optax.sgd(schedule, momentum=0.9, nesterov=True))


KINDS = {"adamw": (torch_adamw, jax_adamw), "sgd": (torch_sgd, jax_sgd)}


class TorchRun:
    """A run in PyTorch: model, optimiser and average, before any step."""

    def __init__(self, model: torch.nn.Module, kind: str) -> None:
        self.model = copy.deepcopy(model)
        self.optimizer = KINDS[kind][0](self.model)
        self.ema = Ema(self.model, EMA_DECAY)

    def go(self, start: int, stop: int) -> TorchRun:
        """Takes steps `start` to `stop`; PyTorch's own scheduler begins at `start`."""
        for group in self.optimizer.param_groups:
            group["initial_lr"] = 1.0
        scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, rate, last_epoch=start - 1)
        for step in range(start, stop):
            x, y = map(torch.from_numpy, batch(step))
            self.optimizer.zero_grad()
            (self.model(x) - y).square().mean().backward()
            self.optimizer.step()
            scheduler.step()
            self.ema.update(self.model)
        return self

    def results(self) -> dict[str, np.ndarray]:
        """Weights and average by name."""
        weights = {name: to_numpy(value) for name, value in self.model.state_dict().items()}
        return {**weights, **{f"ema {name}": to_numpy(value) for name, value in self.ema.state.items()}}


class JaxRun:
    """A run in JAX on flat dictionaries, before any step."""

    def __init__(self, model: nnx.Module, kind: str) -> None:
        graphdef, self.params, self.buffers = split_model(model)
        self.tx = KINDS[kind][1](self.params)
        self.opt_state = self.tx.init(self.params)
        self.ema = {**self.params, **self.buffers}

        def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
            return jnp.square(merge_model(graphdef, {**params, **self.buffers})(x) - y).mean()

        self.gradient = jax.jit(jax.grad(loss))

    def go(self, start: int, stop: int) -> JaxRun:
        """Takes steps `start` to `stop`; the optimiser itself knows its place in the schedule."""
        for step in range(start, stop):
            x, y = batch(step)
            grads = self.gradient(self.params, x.transpose(0, 2, 3, 1), y)
            updates, self.opt_state = self.tx.update(grads, self.opt_state, self.params)
            self.params = optax.apply_updates(self.params, updates)
            self.ema = update_ema(self.ema, {**self.params, **self.buffers}, EMA_DECAY)
        return self

    def results(self, ledger: Ledger) -> dict[str, np.ndarray]:
        """Weights and average by PyTorch's name, in its layout."""
        found = {}
        for label, arrays in (("", {**self.params, **self.buffers}), ("ema ", self.ema)):
            carried_back = torch_arrays(ledger, {name: np.asarray(array) for name, array in arrays.items()})
            found |= {f"{label}{name}": array for name, array in carried_back.items()}
        return found


def worst(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> float:
    assert found.keys() == wanted.keys()
    return max(rel_f(found[name], wanted[name]) for name in wanted)


@contextlib.contextmanager
def rates_are_set_later() -> Iterator[None]:
    """PyTorch's learning rate is the scheduler's, which `TorchRun.go` makes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "at the next step the learning rate is")
        yield


def to_jax(run: TorchRun, kind: str, ledger: Ledger, steps: int) -> JaxRun:
    model = FlaxToy()
    torch_to_jax(run.model, model)
    other = JaxRun(model, kind)
    counted = None if kind == "adamw" else steps
    with rates_are_set_later():
        other.opt_state = optimizer_to_jax(
            run.optimizer, run.model, other.opt_state, ledger, steps=counted, tx=other.tx
        )
    other.ema = ema_to_jax(run.ema.state, other.ema, ledger)
    return other


def to_torch(run: JaxRun, kind: str, ledger: Ledger) -> tuple[TorchRun, int | None]:
    model = TorchToy().double()
    arrays = torch_arrays(ledger, {name: np.asarray(array) for name, array in (run.params | run.buffers).items()})
    model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in arrays.items()})
    other = TorchRun(model, kind)
    with rates_are_set_later():
        steps = optimizer_to_torch(run.opt_state, ledger, other.model, other.optimizer, tx=run.tx)
    other.ema.state = ema_to_torch(run.ema, ledger)
    return other, steps
