"""Training side by side: the same optimizer on the same batches in both frameworks, step by step.

The metric is the distance between the two sets of weights relative to the distance travelled, with norms over all
trained parameters together:

    ||w_jax - w_torch|| / ||w_torch - w_start||

- Relative to the distance travelled, because weights change by about 0.1 % in a few steps: a wrong optimizer is hardly
  visible in ||w_jax - w_torch|| / ||w_torch||, but gives about 1 here.
- Over all parameters, because Adam divides by the size of the gradient. A structurally zero gradient (the bias of keys
  under a softmax) is pure rounding error, and Adam turns it into a step of arbitrary direction. The ratio of that
  tensor alone is meaningless, while in the norm over all parameters its elements have their actual weight.
- In float64 rounding starts near 1e-16 and grows through Adam's division and the curvature of the loss, but stays some
  orders of magnitude below the gate of 1e-10; a mistake in the algorithm starts above 1e-6.
- In float32 no gate can be derived, so PyTorch is the reference: JAX's float32 run may be three times as far from
  PyTorch's float64 run as PyTorch's own float32 run, and never more than 1e-3. One systematic term is derived:
  optax computes Adam's bias correction 1 - b2^t in the parameters' precision, PyTorch in double. float32 rounds b2 by
  at most 2^-25 and the power once more, which changes 1 - b2^t by a relative 2^-24 / (1 - b2), and the step by half of
  that: 3e-5 of the distance with b2 = 0.999, in one direction, whatever the model. This amount is added to the gate.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx

from parity.carry.convert import Ledger, build_ledger, jax_arrays, to_numpy, torch_arrays
from parity.carry.rules import Rules
from parity.causes.training.optimizers import optimiser_causes, schedule_causes
from parity.environment import fingerprint
from parity.measure.gates import Row, norm, rel_f, relative
from parity.optimizer_state.state import named
from parity.recording.align import input_axes
from parity.report.findings import Cause, Trajectory
from parity.report.json_values import finite, shallow
from parity.runs.jax_side import JaxSide
from parity.runs.torch_side import TorchSide
from parity.side_by_side.optimizers import Training
from parity.training_mode.train_mode import silenced

Arrays = dict[str, np.ndarray]

Batch = tuple[Sequence[np.ndarray], np.ndarray]
"""Inputs in the PyTorch model's layout, and targets."""


class Step(NamedTuple):
    """Measurements of one step; see `parity.report.findings.Trajectory`."""

    loss_torch: float
    loss_jax: float
    distance64: float
    distance32_jax: float
    distance32_torch: float


@dataclasses.dataclass(frozen=True)
class TrainingGates:
    """Largest distances that pass (see `Trajectory` for the first four; `floor32` is derived above), and `exact`, the
    gate of the schedule and the moving average, which allows only a few roundings.
    """

    distance64: float = 1e-10
    distance32: float = 1e-3
    ratio32: float = 3.0
    floor32: float = 2.0**-25 / (1 - 0.999)
    exact: float = 1e-13


@dataclasses.dataclass(frozen=True)
class TrainingProof:
    """Result of training side by side.

    `rows` have the kinds "decay mask" (number of names that differ), "schedule", "average", and "step": after the first
    step, the distance between the frameworks in each parameter, relative to the total distance travelled. `causes`
    name the mistake in the schedule or the optimizer if a single switch of AdamW explains it.
    """

    rows: tuple[Row, ...]
    trajectory: Trajectory
    ledger: Ledger
    causes: tuple[Cause, ...] = ()

    @property
    def passed(self) -> bool:
        return bool(self.rows) and all(row.passed for row in self.rows) and self.trajectory.passed

    def to_json(self, settings: Mapping[str, Any] | None = None) -> str:
        """Return all measurements, the settings and the environment as JSON; non-finite numbers become strings."""
        payload = {
            "schema": 1,
            "passed": self.passed,
            "settings": shallow(settings or {}),
            "environment": fingerprint(),
            "rows": [{**dataclasses.asdict(row), "passed": row.passed} for row in self.rows],
            "trajectory": {**dataclasses.asdict(self.trajectory), "passed": self.trajectory.passed},
            "causes": [dataclasses.asdict(cause) for cause in self.causes],
        }
        return json.dumps(finite(payload), indent=1, allow_nan=False)


def train_side_by_side(
    torch_model: torch.nn.Module,
    jax_model: nnx.Module,
    make_batch: Callable[[int], Batch],
    steps: int,
    training: Training,
    *,
    rules: Rules | None = None,
    gates: TrainingGates | None = None,
    progress: Callable[[int, Step], None] | None = None,
) -> TrainingProof:
    """Train copies of both models in float64 and in float32 on the same batches, without dropout, and compare them.

    Args:
        torch_model, jax_model: Pair of models with the same weights (see `parity.torch_to_jax`).
        make_batch: Function that returns the batch of a step (0, 1, ...).
        steps: Number of optimizer steps.
        training: Optimizer, schedule, loss and average in both frameworks (see `parity.side_by_side.optimizers`).
        rules: Rules of this pair in addition to the built-in rules.
        progress: Function called after each step with its number (from 1) and measurements.

    Raises:
        ValueError: The models cannot be compared, `steps` is less than 1, or the weights never moved.
    """
    if steps < 1:
        raise ValueError(f"training takes at least one step, got {steps}")
    rules, gates = rules or Rules(), gates or TrainingGates()
    ledger = build_ledger(torch_model, jax_model, rules)
    pair = silenced(torch_model, jax_model, rules)
    ours = {precision: TorchTrainer(pair[0], precision, training) for precision in ("float64", "float32")}
    trained = ours["float64"].trained
    theirs = {precision: JaxTrainer(pair[1], precision, training, ledger, trained) for precision in ours}
    oracle, averages = ours["float64"], Averages.of(training, ours["float64"].model, ledger)
    rows = [_mask_row(_decayed_torch(oracle, training, steps), _decayed_jax(theirs["float64"], ledger, steps))]
    start = oracle.weights()
    found, rates, travelled = [], [], 0.0
    for i in range(steps):
        batch = make_batch(i)
        rates.append((oracle.rate, theirs["float64"].rate(i)))
        losses = {side: trainers["float64"].step(batch) for side, trainers in (("torch", ours), ("jax", theirs))}
        ours["float32"].step(batch)
        theirs["float32"].step(batch)
        weights = oracle.weights()
        travelled = distance(weights, start)
        far = {
            key: relative(distance(side.weights(), weights), travelled)
            for key, side in (("64", theirs["float64"]), ("jax", theirs["float32"]), ("torch", ours["float32"]))
        }
        found.append(Step(losses["torch"], losses["jax"], far["64"], far["jax"], far["torch"]))
        if i == 0:
            rows += _step_rows(theirs["float64"].weights(), weights, travelled, gates)
        averages.update(oracle.model)
        if progress is not None:
            progress(i + 1, found[-1])
    if travelled == 0:
        raise ValueError("the weights never moved: there is nothing to compare, train longer or faster")
    rows += [_schedule_row(rates, gates), *averages.rows(gates)]
    series: dict[str, Any] = dict(zip(Step._fields, map(tuple, zip(*found, strict=True)), strict=True))
    limits: Any = {"gate64": gates.distance64, "gate32": gates.distance32}
    trajectory = Trajectory(**series, **limits, ratio32=gates.ratio32, floor32=gates.floor32)
    wrong = {row.kind for row in rows if not row.passed}
    causes = schedule_causes(rates) if "schedule" in wrong else []
    if ("decay mask" in wrong or max(trajectory.distance64) > gates.distance64) and not causes:
        fresh = JaxTrainer(pair[1], "float64", training, ledger, trained)
        causes = optimiser_causes(TorchTrainer(pair[0], "float64", training), fresh)
    return TrainingProof(tuple(rows), trajectory, ledger, tuple(causes))


class TorchTrainer:
    """A copy of the PyTorch model that is trained in one precision."""

    def __init__(self, model: torch.nn.Module, precision: str, training: Training) -> None:
        self.side = TorchSide.of(model, precision, training=True)
        self.model, self.loss = self.side.model, training.loss
        self.optimizer, self.scheduler = training.torch(self.model)
        updated = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        self.trained = {name: p for name, p in self.model.named_parameters() if id(p) in updated and p.requires_grad}

    @property
    def rate(self) -> float:
        """Learning rate of the first parameter group for the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self, batch: Batch) -> float:
        """Run one step and return the loss before it."""
        inputs, target = self.side.inputs(batch[0]), self.side.inputs([batch[1]])[0]
        self.optimizer.zero_grad()
        loss = self.loss.torch(self.model(*inputs), target)
        loss.backward()
        self.advance()
        return loss.item()

    def advance(self) -> None:
        """Step the optimizer with the current gradients, then the scheduler."""
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()

    def weights(self) -> Arrays:
        """Return a copy of the trained parameters."""
        return {name: to_numpy(p).copy() for name, p in self.trained.items()}


class JaxTrainer:
    """A copy of the flax model that is trained in one precision; `trained` are PyTorch's parameter names."""

    def __init__(
        self, model: nnx.Module, precision: str, training: Training, ledger: Ledger, trained: Collection[str]
    ) -> None:
        self.ledger = Ledger(tuple(entry for entry in ledger if entry.torch in trained))
        self.training, names = training, {entry.jax for entry in self.ledger}
        self.side = JaxSide.of(model, precision, (), training=True)

        def is_trained(path: tuple[Any, ...], _: Any) -> bool:
            return ".".join(map(str, path)) in names

        with self.side.switches():
            parts: Any = nnx.split(self.side.model, is_trained, ...)
            graphdef, params, self.rest = parts
            self.params: dict[str, jax.Array] = {}
            named(params, self.params.setdefault)
            self.tx = training.jax(self.params)
            self.opt_state = self.tx.init(self.params)

        def loss(params: dict, rest: nnx.State, inputs: Sequence[jax.Array], target: jax.Array) -> Any:
            own = jax.tree.map(lambda x: x, rest)  # variables of this trace, so that running statistics can be updated
            module: Any = nnx.merge(graphdef, named(template, lambda name, _: params[name]), own)
            value = training.loss.jax(module(*inputs), target)
            parts: Any = nnx.split(module, is_trained, ...)
            return value, parts[2]

        def step(params: dict, rest: nnx.State, opt_state: Any, inputs: Sequence[jax.Array], target: jax.Array) -> Any:
            (value, rest), grads = jax.value_and_grad(loss, has_aux=True)(params, rest, inputs, target)
            updates, opt_state = self.tx.update(grads, opt_state, params)
            return value, optax.apply_updates(params, updates), rest, opt_state

        template = params
        quick = precision == "float64" and jax.default_backend() == "cpu"
        # As in parity.runs.jax_side: without XLA's optimizations compilation is faster, and no digit that the gate
        # resolves changes.
        self._compiled = jax.jit(step, compiler_options={"xla_backend_optimization_level": 0} if quick else None)

    def rate(self, step: int) -> float:
        """Return the learning rate of step `step`, counted from 0."""
        with self.side.switches():
            rate = self.training.jax_rate
            return float(rate(jnp.asarray(step, jnp.int32)) if callable(rate) else rate)

    def step(self, batch: Batch) -> float:
        """Run one step and return the loss before it."""
        self.side.input_axes = [input_axes(x.ndim) for x in batch[0]]
        with self.side.switches():
            inputs, target = self.side.inputs(batch[0]), self.side._array(batch[1])
            found = self._compiled(self.params, self.rest, self.opt_state, inputs, target)
        loss, self.params, self.rest, self.opt_state = found
        return float(loss)

    def weights(self) -> Arrays:
        """Return the trained parameters with PyTorch's names and layouts."""
        return torch_arrays(self.ledger, {name: np.asarray(array) for name, array in self.params.items()})


@dataclasses.dataclass
class Averages:
    """The moving averages of both frameworks, updated with the same weights: PyTorch's."""

    training: Training
    ledger: Ledger
    torch: Any
    jax: dict[str, jax.Array]
    worst: float = 0.0
    where: str = ""

    @classmethod
    def of(cls, training: Training, model: torch.nn.Module, ledger: Ledger) -> Averages:
        average = None if training.torch_ema is None else training.torch_ema(model)
        found = cls(training, ledger, average, {})
        found.jax = found._carried(model)
        return found

    def update(self, model: torch.nn.Module) -> None:
        """Update both averages with the model's current weights, and compare them."""
        if self.torch is None or self.training.jax_ema is None:
            return
        self.torch.update(model)
        with jax.enable_x64(True):
            self.jax = dict(self.training.jax_ema(self.jax, self._carried(model)))
        ours = {name: to_numpy(value) for name, value in self.torch.state.items()}
        back = torch_arrays(self.ledger, {name: np.asarray(value) for name, value in self.jax.items()})
        for name, array in back.items():
            if array.size and not (error := rel_f(array, ours[name])) <= self.worst:
                self.worst, self.where = error, name

    def _carried(self, model: torch.nn.Module) -> dict[str, jax.Array]:
        values = {name: to_numpy(value) for name, value in model.state_dict().items()}
        with jax.enable_x64(True):
            return {name: jnp.array(array) for name, array in jax_arrays(self.ledger, values).items()}

    def rows(self, gates: TrainingGates) -> list[Row]:
        if self.torch is None or self.training.jax_ema is None:
            return []
        return [Row(self.where, "average", "train", "float64", self.worst, gates.exact)]


def distance(a: Arrays, b: Arrays) -> float:
    """Return ||a - b|| over all tensors, in float64.

    Raises:
        ValueError: The names differ.
    """
    if a.keys() != b.keys():
        raise ValueError(f"these tensors are on one side only: {', '.join(sorted(a.keys() ^ b.keys()))}")
    return math.hypot(*(norm(a[name].astype(np.float64) - b[name]) for name in a))


def _step_rows(theirs: Arrays, ours: Arrays, travelled: float, gates: TrainingGates) -> list[Row]:
    """Return one row per parameter: its part of the distance after the first step."""
    shares = {name: relative(norm(theirs[name] - ours[name]), travelled) for name in ours}
    return [Row(name, "step", "train", "float64", share, gates.distance64) for name, share in shares.items()]


def _schedule_row(rates: Sequence[tuple[float, float]], gates: TrainingGates) -> Row:
    error = max(relative(abs(theirs - ours), abs(ours)) for ours, theirs in rates)
    return Row("", "schedule", "train", "float64", error, gates.exact)


def _mask_row(ours: set[str], theirs: set[str]) -> Row:
    """Return a row with the number of parameters that decay in only one framework."""
    only = [f"{name} decays only in PyTorch" for name in sorted(ours - theirs)]
    only += [f"{name} decays only in JAX" for name in sorted(theirs - ours)]
    return Row("", "decay mask", "train", "float64", float(len(only)), 0.0, note="; ".join(only))


def _decayed_torch(trainer: TorchTrainer, training: Training, steps: int) -> set[str]:
    """Return the names of decayed parameters: with zero gradients, parameters set to one change only by decay."""
    probe = TorchTrainer(copy.deepcopy(trainer.model), "float64", training)
    with torch.no_grad():
        for p in probe.trained.values():
            p.fill_(1.0)
            p.grad = torch.zeros_like(p)
    for _ in range(steps):  # with a warm-up from a rate of zero, the first steps do not decay
        probe.advance()
        moved = {name for name, p in probe.trained.items() if bool((p != 1.0).any())}
        if moved:
            return moved
    return set()


def _decayed_jax(trainer: JaxTrainer, ledger: Ledger, steps: int) -> set[str]:
    """Return the same as `_decayed_torch` for JAX, with PyTorch's names."""
    with trainer.side.switches():
        params = {name: jnp.ones_like(p) for name, p in trainer.params.items()}
        grads, state = jax.tree.map(jnp.zeros_like, params), trainer.opt_state
        for _ in range(steps):
            updates, state = trainer.tx.update(grads, state, params)
            moved = {name for name, update in updates.items() if bool((update != 0).any())}
            if moved:
                return {entry.torch for entry in ledger if entry.jax in moved}
    return set()
