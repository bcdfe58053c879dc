"""`parity.train`: the proof that two training loops are the same, step by step.

In every step JAX starts from PyTorch's parameters. Its loss and gradients are compared with PyTorch's; its optimizer
then gets PyTorch's gradients, and the change of every parameter is compared. So rounding does not add up over the
steps, and a difference shows in the step and at the tensor where it arises. Besides, JAX trains by itself, and the
distance between the two sets of parameters is compared with the distance travelled.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx

from parity.carry.arrays import first_line, to_numpy
from parity.carry.convert import torch_arrays
from parity.carry.entries import Ledger
from parity.carry.model_types import jax_subject, torch_subject
from parity.carry.program import Adapter, Program, title_of
from parity.carry.rules import Rules
from parity.environment import fingerprint
from parity.measure.gates import norm, relative
from parity.optimizer_state.state import parameter_names, read_optax, read_torch
from parity.pairing.input_layouts import fitting_inputs
from parity.proof.prepare import paired_tensors
from parity.recording.align import input_axes
from parity.recording.inputs import Apply, Arguments
from parity.report.findings import Cause
from parity.runs.jax_side import JaxSide
from parity.runs.torch_side import TorchSide
from parity.side_by_side.arithmetic import Arrays, Options
from parity.side_by_side.explain import (
    GATE,
    Explained,
    average_cause,
    error,
    gradient_cause,
    optimizer_cause,
    pytorchs_rule,
)
from parity.side_by_side.jax_run import Average, JaxLoop, JaxLoss
from parity.side_by_side.optimizers import TrainingLoss, classification
from parity.side_by_side.records import Batch, Clipping, Step, TorchLoop, TorchLoss
from parity.side_by_side.training_report import StepRow, TrainReport
from parity.training_mode.train_mode import silenced

GRADIENT_GATE = 1e-11
"""Largest relF of a gradient. Ten times that of `parity.check`: 20 steps are 20 times as many chances to exceed it."""

EXACT = 1e-12
"""Largest relF of a moving average, some roundings for each step."""

SEARCHED = 2 * 2**30
"""Bytes of parameters and gradients kept for the search for a cause."""

Batches = Sequence[tuple[Any, Any]] | Callable[[int], tuple[Any, Any]]


def train(
    torch_model: torch.nn.Module,
    jax_model: nnx.Module | Adapter,
    batches: Batches,
    *,
    torch_optimizer: Callable[[torch.nn.Module], torch.optim.Optimizer],
    optax: Any,
    loss: TrainingLoss | tuple[TorchLoss, JaxLoss] | None = None,
    steps: int = 20,
    torch_scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
    torch_clip: Clipping | None = None,
    accumulation: int = 1,
    torch_reduction: str = "mean",
    jax_reduction: str = "mean",
    torch_ema: Callable[[torch.nn.Module], Any] | None = None,
    jax_ema: Average | None = None,
    torch_ema_at: str = "after",
    jax_ema_at: str = "after",
    rules: Rules | None = None,
    training: bool | None = None,
    progress: Callable[[str], None] | None = None,
) -> TrainReport:
    """Train copies of both models in float64 on the same batches, and compare every step.

    Compared are the loss, all gradients, the optimizer's moments, the change of every parameter, the moving average and
    the running statistics. If an optimizer or a moving average differs, the cause is searched: the single change of
    PyTorch's arithmetic with which it takes JAX's steps, all of them, to the gate.

    Dropout is off on both sides. Models of Linen, Equinox and Haiku, and functions, run in evaluation mode, and so does
    PyTorch's model beside them. All parameters with a partner are trained in JAX; those that PyTorch freezes have to be
    frozen in the transformation.

    Args:
        torch_model, jax_model: Pair of models with the same weights, as for `parity.check`.
        batches: Pairs of (inputs, target) in PyTorch's layout, used in turn and again from the first; or a function of
            the number of the batch, from 0. Inputs as for `parity.check`; the target is an array or None.
        torch_optimizer: Function that makes the optimizer of a model.
        optax: An optax transformation, or a function that makes it of the parameters, {"blocks.0.kernel": array, ...}.
        loss: Functions of (output, target) in PyTorch and in JAX. Default: mean cross entropy of logits (B, K).
        steps: Number of steps of the optimizer.
        torch_scheduler: Function that makes the learning rate scheduler of the optimizer; it steps after each step.
        torch_clip: Function that clips the gradients of a list of parameters in place, before each step, e.g.
            `lambda params: torch.nn.utils.clip_grad_norm_(params, 1.0)`. In JAX it is part of the transformation.
        accumulation: Number of batches for each step.
        torch_reduction, jax_reduction: Whether their gradients are accumulated as "mean" or "sum"; in JAX also "optax":
            the transformation gets them one by one (`optax.MultiSteps`).
        torch_ema: Function that makes a moving average of a model, with `update_parameters(model)` and `module`, as
            `torch.optim.swa_utils.AveragedModel`; or with `update(model)` and `state`, a state dict.
        jax_ema: Function of (average, parameters) that returns the new average. The first is the first parameters.
        torch_ema_at, jax_ema_at: Whether the average is updated "before" or "after" the optimizer's step.
        rules: Rules of this pair in addition to the built-in rules.
        training: Whether both models run in training mode (batch statistics). Default: true, if JAX's is an NNX model.
        progress: Function called with a line of text after each step.

    Raises:
        ValueError: The models or the arguments cannot be used, or no parameter ever moved.
    """
    _check_arguments(steps, accumulation, torch_reduction, jax_reduction, torch_ema_at, jax_ema_at)
    if (torch_ema is None) != (jax_ema is None):
        raise ValueError("a moving average needs both torch_ema and jax_ema, or neither")
    torch_model, jax_model = torch_subject(torch_model), jax_subject(jax_model)
    if isinstance(jax_model, Program):
        jax_model.require_numbers()
        if training:
            raise ValueError("training=True needs a flax.nnx.Module: an adapter runs its model in evaluation mode")
    training = not isinstance(jax_model, Program) if training is None else training
    source = _Source.of(batches, accumulation)
    pair = _Pair.of(torch_model, jax_model, source, rules or Rules(), training)
    losses = loss or classification(0.0)
    in_torch, in_jax = (losses.torch, losses.jax) if isinstance(losses, TrainingLoss) else losses

    def torch_loop(scale: float = 1.0) -> TorchLoop:
        return TorchLoop(
            pair.torch_side(),
            pair.apply,
            in_torch if scale == 1 else lambda output, target: scale * in_torch(output, target),
            torch_optimizer,
            [entry.torch for entry in pair.ledger],
            scheduler=torch_scheduler,
            clip=torch_clip,
            reduction=torch_reduction,
            ema=torch_ema,
            ema_at=torch_ema_at,
        )

    jax_loop = JaxLoop(
        pair.jax_side, pair.apply, in_jax, optax, pair.ledger, reduction=jax_reduction, ema=jax_ema, ema_at=jax_ema_at
    )
    run = _Run(torch_loop, jax_loop, source, steps, progress or (lambda text: None))
    try:
        run.go()
    except TypeError as problem:
        raise ValueError(f"a training step cannot be run: {first_line(problem)}") from problem
    settings = {
        "torch_model": type(torch_model).__name__,
        "jax_model": title_of(jax_model),
        "torch_optimizer": type(run.torch.optimizer).__name__,
        "steps": steps,
        "accumulation": accumulation,
        "training mode": training,
    }
    return run.report(pair, settings)


def _check_arguments(steps: int, accumulation: int, torch: str, jax: str, torch_at: str, jax_at: str) -> None:
    """Raise ValueError for a value that cannot be used."""
    for name, count in (("steps", steps), ("accumulation", accumulation)):
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} has to be a whole number from 1, got {count!r}")
    for name, value, known in (
        ("torch_reduction", torch, ("mean", "sum")),
        ("jax_reduction", jax, ("mean", "sum", "optax")),
        ("torch_ema_at", torch_at, ("before", "after")),
        ("jax_ema_at", jax_at, ("before", "after")),
    ):
        if value not in known:
            raise ValueError(f"{name} {value!r} is not one of {', '.join(known)}")


@dataclasses.dataclass(frozen=True)
class _Source:
    """The batches of every step."""

    get: Callable[[int], tuple[Any, Any]]
    accumulation: int

    @classmethod
    def of(cls, batches: Batches, accumulation: int) -> _Source:
        if callable(batches):
            return cls(batches, accumulation)
        known = list(batches)
        if not known:
            raise ValueError("there are no batches: pass a list of (inputs, target)")
        return cls(lambda i: known[i % len(known)], accumulation)

    def arguments(self, i: int) -> tuple[Arguments, np.ndarray | None]:
        given = self.get(i)
        if not isinstance(given, tuple | list) or len(given) != 2:
            raise ValueError(f"batch {i} has to be a pair of (inputs, target), not {type(given).__name__}")
        target = None if given[1] is None else to_numpy(given[1])
        return Arguments.of(given[0]), target

    def step(self, i: int) -> list[Batch]:
        found = (self.arguments(i * self.accumulation + j) for j in range(self.accumulation))
        return [(arguments.arrays, target) for arguments, target in found]


@dataclasses.dataclass(frozen=True)
class _Pair:
    """Both models, prepared to be copied for a run. `ledger` has the parameters of PyTorch only."""

    torch_model: torch.nn.Module
    jax_side: JaxSide
    apply: Apply
    training: bool
    ledger: Ledger
    buffers: Ledger
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls, torch_model: torch.nn.Module, jax_model: nnx.Module, source: _Source, rules: Rules, training: bool
    ) -> _Pair:
        tensors = paired_tensors(torch_model, jax_model, rules)
        if tensors.missing:
            raise ValueError(f"{tensors.missing[0].name} of PyTorch has no partner in JAX: {tensors.missing[0].note}")
        torch_model, ledger = tensors.torch_model, tensors.ledger
        added = next((entry for entry in ledger if entry.added), None)
        if added is not None:
            first = next(entry.torch for entry in ledger if entry.jax == added.jax and not entry.added)
            raise ValueError(
                f"{first} and {added.torch} of PyTorch are one tensor in JAX, {added.jax}, which is trained half as fast: "
                "freeze one of them in PyTorch and leave it out, or give JAX both"
            )
        names = set(parameter_names(torch_model, {entry.torch for entry in ledger}).values())
        arguments, _ = source.arguments(0)
        silent = silenced(torch_model, jax_model, rules) if training else (torch_model, jax_model)
        usual = tuple(input_axes(x.ndim) for x in arguments.arrays)
        ours = TorchSide.of(torch_model, "float64", apply=arguments.apply)
        theirs = JaxSide.of(jax_model, "float64", usual, apply=arguments.apply)
        theirs, note = fitting_inputs(ours, theirs, arguments.arrays, rules)
        side = JaxSide.of(silent[1], "float64", theirs.input_axes, training=training, apply=arguments.apply)
        unpaired = sorted(names - {entry.torch for entry in ledger})
        notes = [*tensors.notes, *ledger.notes, *([note] if note else [])]
        if unpaired:
            notes.append(f"not compared, since they have no partner in JAX: {', '.join(unpaired)}")
        if not training:
            notes.append("both models ran in evaluation mode: without dropout, and with fixed running statistics")
        else:
            notes.append("dropout was off on both sides")
        return cls(
            silent[0],
            side,
            arguments.apply,
            training,
            Ledger(tuple(entry for entry in ledger if entry.torch in names)),
            Ledger(tuple(entry for entry in ledger if entry.torch not in names)),
            tuple(notes),
        )

    def torch_side(self) -> TorchSide:
        return TorchSide.of(self.torch_model, "float64", training=self.training, apply=self.apply)


class _Run:
    """Both loops, and what was measured."""

    def __init__(
        self,
        torch_loop: Callable[..., TorchLoop],
        jax_loop: JaxLoop,
        source: _Source,
        steps: int,
        tell: Callable[[str], None],
    ) -> None:
        self.torch_loop, self.jax, self.source, self.steps, self.tell = torch_loop, jax_loop, source, steps, tell
        self.torch = torch_loop()
        self.paired = [name for name in self.torch.parameters if name in {entry.torch for entry in jax_loop.ledger}]
        self.rows: list[StepRow] = []
        self.states: list[StepRow] = []
        self.scaled_states: list[StepRow] = []
        self.kept: list[tuple[Step, list[Arrays], Arrays, Arrays | None]] = []
        self.losses: list[tuple[float, float]] = []
        self.distances: list[float] = []
        self.start: Arrays = {}

    def go(self) -> None:
        """Run all steps.

        Raises:
            ValueError: No parameter ever moved.
        """
        self.start = self.torch.weights()
        names = {id(p): name for name, p in self.torch.parameters.items()}
        free, held, travelled = self.jax.track, 0, 0.0
        for i in range(self.steps):
            batches = self.source.step(i)
            step = self.torch.step(batches)
            losses, own, change, average = self.jax.forced(step.start, step.gradients, batches, step.end)
            self._compare(i + 1, step, losses, own, change, average)
            self._compare_states(i + 1, names)
            size = sum(x.nbytes for x in (*step.start.values(), *step.end.values())) * (2 + len(own))
            if held + size <= SEARCHED or len(self.kept) < 2:
                held += size
                self.kept.append((step, own, change, average))
            forced, self.jax.track = self.jax.track, free
            theirs = self.jax.free(batches)
            travelled = self._distance(step.end, self.start)
            self.distances.append(relative(self._distance(self.jax.weights(), step.end), travelled))
            free, self.jax.track = self.jax.track, forced
            self.losses.append((sum(step.losses) / len(step.losses), theirs))
            self.tell(f"step {i + 1} of {self.steps}: loss {self.losses[-1][0]:.6g}, distance {self.distances[-1]:.1e}")
        self.final = free
        if travelled == 0:
            raise ValueError("no parameter moved in PyTorch: raise the learning rate, or train longer")

    def _distance(self, a: Arrays, b: Arrays) -> float:
        return math.hypot(*(norm(a[name] - b[name]) for name in self.paired))

    def _compare(
        self, number: int, step: Step, losses: list[float], own: list[Arrays], change: Arrays, average: Arrays | None
    ) -> None:
        def add(stage: str, errors: Mapping[str, float], gate: float) -> None:
            # NaN first, since it compares with nothing.
            name = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
            worst = errors[name]
            self.rows.append(StepRow(number, stage, name, math.inf if math.isnan(worst) else worst, gate))

        whole = [math.hypot(*(norm(g[n]) for n in self.paired)) for g in step.gradients]
        pairs = zip(losses, step.losses, whole, strict=True)
        add("loss", {"": max((relative(abs(a - b), max(abs(b), w)) for a, b, w in pairs), key=_order)}, GRADIENT_GATE)
        errors = {
            name: max(
                (_gradient_error(a[name], b[name], w) for a, b, w in zip(own, step.gradients, whole, strict=True)),
                key=_order,
            )
            for name in self.paired
        }
        add("gradient", errors, GRADIENT_GATE)
        wanted = step.change
        add("update", {n: error(change[n], wanted[n], step.start[n]) for n in self.paired}, GATE)
        if average is not None and step.average is not None:
            shared = [name for name in self.paired if name in step.average]
            found = {n: relative(norm(average[n] - step.average[n]), norm(step.average[n])) for n in shared}
            add("average", found, EXACT)

    def _compare_states(self, number: int, names: Mapping[int, str]) -> None:
        """Compare the optimizers' moments where both are known, as they are and up to one factor for each kind."""
        try:
            ours = read_torch(self.torch.optimizer, names, fresh=True)
            theirs = read_optax(self.jax.state, orthogonal=True)
        except ValueError:  # an optimizer whose state is not known
            return
        for slot, moments in ours.moments.items():
            known = {name: np.asarray(x) for name, x in theirs.moments.get(slot, {}).items()}
            held = {n for n in moments if all(e.jax in known for e in self.jax.ledger if e.torch == n)}
            entries = Ledger(tuple(entry for entry in self.jax.ledger if entry.torch in held))
            back = {n: x for n, x in torch_arrays(entries, known).items() if norm(x) or norm(moments[n])}
            if not back:
                continue
            x, y = (np.concatenate([one[name].ravel() for name in back]) for one in (moments, back))
            factor = float(np.dot(x, y) / max(np.dot(x, x), 1e-300))
            for rows, unit in ((self.states, 1.0), (self.scaled_states, factor)):
                errors = {n: relative(norm(back[n] - unit * moments[n]), abs(unit) * norm(moments[n])) for n in back}
                worst = max(errors, key=lambda name: _order(errors[name]))
                rows.append(StepRow(number, "optimizer state", f"{worst} ({slot})", errors[worst], GATE))

    def report(self, pair: _Pair, settings: Mapping[str, Any]) -> TrainReport:
        """Return the report, with the cause of a difference."""
        notes = list(pair.notes)
        failing = {row.stage for row in self.rows if not row.passed}
        differ = any(not row.passed for row in self.states)
        if differ and "update" not in failing and all(row.passed for row in self.scaled_states):
            notes.append("JAX's optimizer keeps its moments in another unit than PyTorch's: equal up to one factor")
            self.rows += self.scaled_states
        else:
            self.rows += self.states
        self.rows += self._buffers(pair)
        failing = {row.stage for row in self.rows if not row.passed}
        gate = GATE
        if not failing and max(self.distances) > GATE:
            gate = max(GATE, 10 * self._sensitivity())
            notes.append(
                f"rounding grows in this training: from parameters that differ by 1e-15, PyTorch's own runs part by "
                f"{gate / 10:.1e} of the way, so the distance may be ten times that"
            )
        cause = self._cause(failing)
        if cause is None and "update" in failing and self._options() is None:
            notes.append(
                f"no cause was searched in the optimizer: the arithmetic of {type(self.torch.optimizer).__name__} is not "
                "written out in parity"
            )
        if cause is None and failing & {"loss", "gradient"}:
            notes.append('gradients differ from equal parameters: parity.check(..., level="gradients") finds the module')
        series = zip(*self.losses, strict=True)
        ours, theirs = (tuple(x) for x in series)
        return TrainReport(
            tuple(self.rows), ours, theirs, tuple(self.distances), gate, cause, tuple(notes), settings, fingerprint()
        )

    def _buffers(self, pair: _Pair) -> list[StepRow]:
        """Compare the running statistics after the last step, each framework's with its own batches."""
        if not pair.training or not len(pair.buffers):
            return []
        state = self.torch.side.model.state_dict()
        variables: dict[str, np.ndarray] = {}
        for path, leaf in nnx.to_flat_state(self.jax.variables):
            variables[".".join(map(str, path))] = np.asarray(leaf[...]) if hasattr(leaf, "dtype") else np.zeros(0)
        entries = [e for e in pair.buffers if e.jax in variables and state[e.torch].is_floating_point()]
        found = torch_arrays(Ledger(tuple(entries)), variables)
        errors = {n: relative(norm(x - to_numpy(state[n])), norm(to_numpy(state[n]))) for n, x in found.items()}
        if not errors:
            return []
        worst = max(errors, key=lambda name: _order(errors[name]))
        return [StepRow(self.steps, "buffer", worst, errors[worst], GATE)]

    def _sensitivity(self) -> float:
        """Return the distance between PyTorch's run and one whose first parameters differ by rounding."""
        draw, runs = np.random.RandomState(0), (self.torch_loop(), self.torch_loop())
        shaken = {n: x * (1 + 1e-15 * draw.standard_normal(x.shape)) for n, x in runs[0].weights().items()}
        runs[1].set_weights(shaken)
        worst = 0.0
        for i in range(self.steps):
            a, b = (run.step(self.source.step(i)).end for run in runs)
            worst = max(worst, relative(self._distance(b, a), self._distance(a, self.start)))
        return worst

    def _options(self) -> dict[str, Options | None] | None:
        optimizer, names = self.torch.optimizer, {id(p): n for n, p in self.torch.parameters.items()}
        found = {
            names[id(p)]: Options.of(type(optimizer), group)
            for group in optimizer.param_groups
            for p in group["params"]
            if id(p) in names and names[id(p)] in self.paired and p.requires_grad
        }
        return None if any(options is None for options in found.values()) else found

    def _cause(self, failing: set[str]) -> Cause | None:
        steps, own, changes, averages = (list(x) for x in zip(*self.kept, strict=True))
        if failing & {"loss", "gradient"}:
            examples = len(self.source.step(0)[0][0][0])
            ours, theirs = ([g for one in x for g in one] for x in ([step.gradients for step in steps], own))
            paired = [[{n: g[n] for n in self.paired} for g in side] for side in (ours, theirs)]
            found = gradient_cause(*paired, examples)
            if found is None:
                return None
            return self._confirmed(Explained(*found[:2]), lambda: self._torch_ends(self.torch_loop(found[2])))
        if failing & {"update", "optimizer state"}:
            options = self._options()
            rule = None if options is None else pytorchs_rule(options, steps, self.torch.reduction)
            explained = None if rule is None else optimizer_cause(rule, steps, changes)
            return None if explained is None else self._confirmed(explained, lambda: self._ruled(explained))
        if "average" in failing:
            first = {name: self.start[name] for name in averages[0]}
            explained = average_cause(first, steps, averages, self.torch.ema_at)
            before = max(row.error for row in self.rows if row.stage == "average")
            return explained and Cause("", explained.switch, explained.description, before, GATE)
        return None

    def _torch_ends(self, loop: TorchLoop) -> Any:
        return (loop.step(self.source.step(i)).end for i in range(self.steps))

    def _ruled(self, explained: Explained) -> Any:
        """Yield the parameters after each step of PyTorch's model under another rule than its optimizer's."""
        loop, state, rule = self.torch_loop(), {}, explained.rule
        assert rule is not None
        weights = loop.weights()
        for i in range(self.steps):
            loop.set_weights(weights)
            found = [loop.micro(batch) for batch in self.source.step(i)]
            rates = explained.rates[i] if explained.rates is not None and i < len(explained.rates) else loop.rates()
            absent = frozenset.intersection(*(one for _, _, one in found))
            change = rule.step(weights, [g for _, g, _ in found], rates, absent, state)
            weights = {name: x + change[name] if name in change else x for name, x in weights.items()}
            loop.advance_rates()
            yield weights

    def _confirmed(self, explained: Explained, ends: Callable[[], Any]) -> Cause | None:
        """Return the cause if PyTorch, with it, goes JAX's way by itself; else None."""
        self.jax.restart()
        after = 0.0
        for i, weights in enumerate(ends()):
            if explained.rates is not None and i >= len(explained.rates):
                break
            self.jax.free(self.source.step(i))
            theirs = self.jax.weights()
            after = max(after, relative(self._distance(weights, theirs), self._distance(theirs, self.start)))
        gate = GATE if after <= GATE else max(GATE, 10 * self._sensitivity())
        if not after <= gate:
            return None
        return Cause("", explained.switch, explained.description, max(self.distances, key=_order), after)


def _order(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _gradient_error(given: np.ndarray, wanted: np.ndarray, whole: float) -> float:
    """Return relF of one gradient; one that is zero by structure is measured against all of them."""
    scale = norm(wanted)
    return relative(norm(given - wanted), scale if scale > 1e-10 * whole else whole)
