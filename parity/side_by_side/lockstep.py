"""The steps of both frameworks one by one, what is measured in each, and the search for the cause of a difference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from flax import nnx

from parity.carry.arrays import to_numpy
from parity.carry.convert import torch_arrays
from parity.carry.entries import Ledger
from parity.environment import fingerprint
from parity.measure.gates import norm, relative
from parity.optimizer_state.state import read_optax, read_torch
from parity.report.findings import Cause
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
from parity.side_by_side.jax_run import JaxLoop
from parity.side_by_side.prepared import Pair, Source
from parity.side_by_side.records import Step, TorchLoop
from parity.side_by_side.training_report import StepRow, TrainReport

GRADIENT_GATE = 1e-11
"""Largest relF of a gradient. Ten times that of `parity.check`: 20 steps are 20 times as many chances to exceed it."""

EXACT = 1e-12
"""Largest relF of a moving average, some roundings for each step."""

SEARCHED = 2 * 2**30
"""Bytes of parameters and gradients kept for the search for a cause."""


class Lockstep:
    """Both loops, and what was measured."""

    def __init__(
        self,
        torch_loop: Callable[..., TorchLoop],
        jax_loop: JaxLoop,
        source: Source,
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

    def report(self, pair: Pair, settings: Mapping[str, Any]) -> TrainReport:
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
                f"no cause was searched in the optimizer: the arithmetic of {type(self.torch.optimizer).__name__} is "
                "not written out in parity"
            )
        if cause is None and failing & {"loss", "gradient"}:
            notes.append(
                'gradients differ from equal parameters: parity.check(..., level="gradients") finds the module'
            )
        series = zip(*self.losses, strict=True)
        ours, theirs = (tuple(x) for x in series)
        return TrainReport(
            tuple(self.rows), ours, theirs, tuple(self.distances), gate, cause, tuple(notes), settings, fingerprint()
        )

    def _buffers(self, pair: Pair) -> list[StepRow]:
        """Compare the running statistics after the last step, each framework's with its own batches."""
        if not pair.training or not len(pair.buffers):
            return []
        state = self.torch.side.model.state_dict()
        flat = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(self.jax.variables)}
        variables = {entry.jax: np.asarray(flat[entry.jax][...]) for entry in pair.buffers if entry.jax in flat}
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
            ours, theirs = ([g for one in x for g in one] for x in ([step.gradients for step in steps], own))
            first, second = ([{n: g[n] for n in self.paired} for g in side] for side in (ours, theirs))
            scaled = gradient_cause(first, second, len(self.source.step(0)[0][0][0]))
            if scaled is None:
                return None
            switch, text, factor = scaled
            return self._confirmed(Explained(switch, text), self._torch_ends(self.torch_loop(factor)))
        if failing & {"update", "optimizer state"}:
            options = self._options()
            rule = None if options is None else pytorchs_rule(options, steps, self.torch.reduction)
            found = None if rule is None else optimizer_cause(rule, steps, changes)
            return None if found is None else self._confirmed(found, self._ruled(found))
        if "average" in failing:
            start = {name: self.start[name] for name in averages[0]}
            found = average_cause(start, steps, averages, self.torch.ema_at)
            before = max((row.error for row in self.rows if row.stage == "average"), key=_order)
            return None if found is None else Cause("", found.switch, found.description, before, found.error)
        return None

    def _torch_ends(self, loop: TorchLoop) -> Iterable[Arrays]:
        """Yield the parameters after each step."""
        return (loop.step(self.source.step(i)).end for i in range(self.steps))

    def _ruled(self, explained: Explained) -> Iterable[Arrays]:
        """Yield the parameters after each step of PyTorch's model under another rule than its optimizer's."""
        loop, rule = self.torch_loop(), explained.rule
        state: dict[str, Any] = {}
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

    def _confirmed(self, explained: Explained, ends: Iterable[Arrays]) -> Cause | None:
        """Return the cause if PyTorch, with it, goes JAX's way by itself; else None."""
        self.jax.restart()
        after = 0.0
        for i, weights in enumerate(ends):
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
