"""Search for mistakes that a proof misses: mistakes are tried, then remedies, then gradients, within a budget."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from parity.causes.changes import Change
from parity.causes.recordings import record_calls
from parity.causes.replay import Recording, Sites, Step
from parity.power.derivative import same_derivative
from parity.power.hints import hint
from parity.power.margin import Whole, changes_shapes, forced, forced32
from parity.power.mutate import NotMadeError
from parity.power.mutations import GENERIC, SPECIFIC, Mutation, found, replay
from parity.power.recordings import Called, parts, work_of
from parity.power.remedies import WEIGHTS, Remedy, neutral, remedies
from parity.power.training import TrainingMistake, training_mistakes
from parity.report.power_report import BLIND, NOT_FOUND, SAME, SEEN, PowerReport, PowerRow, grouped
from parity.runs.torch_side import TorchSide

FIRST_SHARE = 0.6
"""Share of the budget for trying mistakes; the rest is for remedies and gradients."""

MORE = "a larger budget (not all could be tried)"
TRAIN = 'level="train"'


@dataclasses.dataclass
class Finding:
    """One mistake in one module, and its largest margin and error over the module's calls so far."""

    mutation: Mutation
    type: str
    margin: float = 0.0
    error: float = 0.0
    remedy: str = ""
    work: float = 0.0
    incomplete: bool = False
    """Whether the budget was spent before everything was tried."""

    @property
    def seen(self) -> bool:
        return self.margin > 1

    def take(self, margin: float, error: float, work: float) -> None:
        self.margin, self.error, self.work = max(self.margin, margin), max(self.error, error), self.work + work

    @property
    def status(self) -> str:
        return SEEN if self.seen else BLIND if self._differs else SAME

    def row(self, module: torch.nn.Module) -> PowerRow:
        m = self.mutation
        remedy = {SEEN: "", BLIND: self._remedy, SAME: hint(m.switch, module)}[self.status]
        return PowerRow((m.module,), self.type, m.switch, m.label, self.status, self.margin, remedy, self.work)

    @property
    def _differs(self) -> bool:
        """Whether the mistake changes the function, or may change it."""
        return bool(self.remedy) or self.incomplete or (self.mutation.rounding and self.error > 0)

    @property
    def _remedy(self) -> str:
        if not self.incomplete:
            return self.remedy or NOT_FOUND
        return f"{self.remedy}; or {MORE}" if self.remedy else MORE

    @property
    def is_a_mistake(self) -> bool:
        """Whether it counts as a mistake: a generic change that gives the same function for any values does not."""
        return self.seen or self._differs or self.mutation.phase == SPECIFIC


@dataclasses.dataclass
class Search:
    """Implementation of `power`; `unit` is the cost of one forward pass."""

    whole: Whole
    calls: Sequence[Called]
    unit: int
    budget: float
    tell: Callable[[str, float], None]
    spent: float = 0.0
    untried: int = 0
    findings: dict[tuple[str, str, str, int], Finding] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    def run(self) -> PowerReport:
        self._try_all()
        self._remedies()
        self._gradients()
        modules = dict(self.whole.model.named_modules())
        rows = [
            finding.row(modules[finding.mutation.module]) for finding in self.findings.values() if finding.is_a_mistake
        ]
        rows += self._training()
        self.tell("done", 1.0)
        work = round(self.spent, 1)
        return PowerReport(grouped(rows), self.whole.level, work, self.budget, self.untried, tuple(self.notes))

    # Trying mistakes

    def _try_all(self) -> None:
        """Try all mistakes: modules of different kinds first, and specific mistakes before generic ones."""
        first, again = _ranked(self.calls)
        for calls, phase in ((first, SPECIFIC), (first, GENERIC), (again, SPECIFIC), (again, GENERIC)):
            for part in parts(calls):
                for call, recording in self._recorded(part, self.whole.model, self.whole.arrays):
                    self._try(call, recording, phase)

    def _recorded(
        self, calls: Sequence[Called], model: torch.nn.Module, arrays: tuple[np.ndarray, ...]
    ) -> Iterator[tuple[Called, Recording]]:
        keys = {call.key: call for call in calls}
        paired = {call.key for call in self.calls}
        self.spent += 1
        side = TorchSide(model, "float64")
        recordings = record_calls(model, side.inputs(arrays), keys, paired, self.whole.apply)
        while recordings:  # freed one by one
            key = next(iter(recordings))
            yield keys[key], recordings.pop(key)

    def _share(self) -> float:
        return min(self.spent / self.budget, 1.0)

    def _try(self, call: Called, recording: Recording, phase: str) -> None:
        replayed = self._replayed(call, recording)
        if replayed is None:
            return
        sites, steps, cost = replayed
        self.tell(f"{call.key[0] or 'the model'}: {phase}", self._share())
        for mutation, change in found(recording, steps):
            if mutation.phase != phase:
                continue
            if self.spent + cost > FIRST_SHARE * self.budget:
                self.untried += 1
                continue
            self.spent += cost
            measured = self._measured(call, recording, sites, mutation, change)
            if measured is not None:
                self._finding(mutation, call.type).take(*measured, cost)

    def _replayed(self, call: Called, recording: Recording) -> tuple[Sites, list[Step], float] | None:
        try:
            sites, steps = recording.run()
        except Exception as error:  # user modules may raise anything when replayed
            self.notes.append(f"{call.key[0] or 'the model'}: not looked into, {type(error).__name__} in a replay")
            return None
        cost = work_of(steps) / self.unit
        self.spent += cost
        return sites, steps, cost

    def _measured(
        self, call: Called, recording: Recording, sites: Sites, mutation: Mutation, change: Change
    ) -> tuple[float, float] | None:
        """Return margin and error of a mistake in one call; None if it cannot be made there."""
        try:
            wrong = replay(recording, change)
            if changes_shapes(sites, wrong):
                return None
            margin, error = forced(sites, wrong, recording.module, self.whole.gates)
            if 0 < margin <= 1:
                margin = max(margin, forced32(recording, mutation, call.key, self.whole.gates))
        except Exception:  # PyTorch cannot run this mistake
            return None
        return margin, error

    def _finding(self, mutation: Mutation, type_: str) -> Finding:
        if mutation.words not in self.findings:
            self.findings[mutation.words] = Finding(mutation, type_)
        return self.findings[mutation.words]

    # Remedies for undetected mistakes

    def _remedies(self) -> None:
        waiting = [f for f in self.findings.values() if not f.seen and not f.mutation.only_in_gradients]
        if not waiting:
            return
        try:
            known = remedies(self.whole.model, self.whole.arrays, self.whole.apply)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            self.notes.append(f"no other inputs could be tried: {error}")
            return
        for remedy in known.everything:
            self._try_remedy(remedy, [f for f in waiting if not f.remedy])
        # If all changes combined reveal nothing, a single one does not either, except for roundings.
        waiting = [f for f in waiting if f.remedy or f.error > 0]
        last = {id(finding): finding.remedy for finding in waiting}
        for finding in waiting:
            finding.remedy = ""
        for remedy in known.single:
            self._try_remedy(remedy, [f for f in waiting if not f.remedy])
        for finding in waiting:
            finding.remedy = finding.remedy or last[id(finding)]

    def _try_remedy(self, remedy: Remedy, waiting: Sequence[Finding]) -> None:
        if not waiting:
            return
        self.tell(f"would it show with {remedy.text}?", self._share())
        by_module: dict[str, list[Finding]] = {}
        for finding in waiting:
            by_module.setdefault(finding.mutation.module, []).append(finding)
        calls = [call for call in self.calls if call.key[0] in by_module]
        for part in parts(calls):
            try:
                for call, recording in self._recorded(part, remedy.model, remedy.arrays):
                    self._show(call, recording, remedy, by_module[call.key[0]])
            except Exception:  # the model does not accept these inputs
                return

    def _show(self, call: Called, recording: Recording, remedy: Remedy, waiting: Sequence[Finding]) -> None:
        sites, steps = recording.run()
        if not all(bool(x.isfinite().all()) for tensors in sites.values() for x in tensors):
            return
        cost = work_of(steps) / self.unit
        offered = list(found(recording, steps))
        by_words = {f.mutation.words: f for f in waiting if not f.remedy}
        words = {mutation.words for mutation, _ in offered}
        # Sizes in the text change with the inputs: such mistakes are matched by spot.
        by_spot = {f.mutation.spot: f for f in by_words.values() if f.mutation.name and f.mutation.words not in words}
        for mutation, change in offered:
            finding = by_words.get(mutation.words) or by_spot.get(mutation.spot)
            if finding is None or finding.remedy:
                continue
            if self.spent + cost > self.budget:
                finding.incomplete = True
                continue
            self.spent += cost
            measured = self._measured(call, recording, sites, mutation, change)
            if measured is not None and measured[0] > 1:
                finding.remedy = self._said(remedy, finding)

    def _said(self, remedy: Remedy, finding: Finding) -> str:
        """Return the text of the remedy, with the constant parameters of the module if it changes weights."""
        module = self.whole.model.get_submodule(finding.mutation.module)
        found = neutral(module) if remedy.text == WEIGHTS else []
        return f"{remedy.text}; now {', '.join(found)}" if found else remedy.text

    # Gradients

    def _gradients(self) -> None:
        """Measure undetected mistakes on the whole model where its layers or gradients may reveal them."""
        waiting = [f for f in self.findings.values() if self._is_due(f)]
        changed = waiting if self.whole.level == "forward" else self._with_other_derivatives(waiting)
        for finding in changed:
            if finding.mutation.only_in_gradients:
                self._only_in_gradients(finding)
            else:
                self._ask(finding, self.whole)

    def _is_due(self, finding: Finding) -> bool:
        if finding.mutation.only_in_gradients:
            return True
        other = finding.error > 0 or (bool(finding.remedy) and self.whole.level != "forward")
        return other and not finding.seen

    def _with_other_derivatives(self, waiting: Sequence[Finding]) -> list[Finding]:
        """Return the findings that change a value of the forward pass, or the derivative of a call of the module."""
        changed = {id(f): f for f in waiting if f.error > 0 or f.mutation.only_in_gradients}
        names = {f.mutation.module for f in waiting if id(f) not in changed}
        for part in parts([call for call in self.calls if call.key[0] in names]):
            for call, recording in self._recorded(part, self.whole.model, self.whole.arrays):
                for finding in (f for f in waiting if f.mutation.module == call.key[0] and id(f) not in changed):
                    self.tell(f"derivative of {call.key[0] or 'the model'}", self._share())
                    if self.spent > self.budget:
                        finding.incomplete = True
                        continue
                    self.spent += 4 * finding.work
                    if not _safe_same(recording, finding.mutation):
                        changed[id(finding)] = finding
        return list(changed.values())

    def _ask(self, finding: Finding, whole: Whole) -> float:
        """Make the mistake in the whole model if the budget allows, and return the margin."""
        mutation = finding.mutation
        if self.spent + whole.work > self.budget:
            finding.incomplete = True
            return 0.0
        self.tell(f"the model with {mutation.module or 'its'} {mutation.text}", self._share())
        self.spent += whole.work
        try:
            margin = whole.margin(mutation)
        except NotMadeError as error:
            self.notes.append(f"not tried in the whole model: {error}")
            return 0.0
        if whole is self.whole:
            finding.take(margin, 0.0, whole.work)
        return margin

    def _only_in_gradients(self, finding: Finding) -> None:
        """Measure a mistake that no forward pass reveals: by gradients on the given inputs, then on other inputs."""
        if self.whole.level != "forward" and self._ask(finding, self.whole) > 1:
            return
        known = remedies(self.whole.model, self.whole.arrays, self.whole.apply)
        here = [Remedy('level="gradients"', self.whole.model, self.whole.arrays)] * (self.whole.level == "forward")
        for remedy in (*here, *known.single, *known.everything):
            level = "gradients" if self.whole.level == "forward" else self.whole.level
            other = dataclasses.replace(
                self.whole, model=remedy.model, arrays=remedy.arrays, level=level, loss=None, _right={}
            )
            if self._ask(finding, other) > 1:
                finding.remedy = remedy.text
                return

    # Training mode

    def _training(self) -> list[PowerRow]:
        return [self._training_row(mistake) for mistake in training_mistakes(self.whole.model)]

    def _training_row(self, mistake: TrainingMistake) -> PowerRow:
        words = (mistake.module,), mistake.type, mistake.switch, mistake.text
        if self.whole.level != "train":
            return PowerRow(*words, BLIND, 0.0, TRAIN)
        if mistake.change is None:
            return PowerRow(*words, SEEN, math.inf)
        wrong = copy.deepcopy(self.whole.model)
        mistake.change(wrong.get_submodule(mistake.module))
        self.spent += self.whole.work
        margin = self.whole.of(wrong)
        return PowerRow(*words, SEEN if margin > 1 else BLIND, margin, "" if margin > 1 else NOT_FOUND, self.whole.work)


def _safe_same(recording: Recording, mutation: Mutation) -> bool:
    try:
        return same_derivative(recording, mutation)
    except Exception:  # the call cannot be differentiated by itself: measured on the whole model
        return False


def _ranked(calls: Sequence[Called]) -> tuple[list[Called], list[Called]]:
    """Return the first call of each kind, and the others."""
    known: set[Any] = set()
    first: list[Called] = []
    again: list[Called] = []
    for call in calls:
        (again if call.kind in known else first).append(call)
        known.add(call.kind)
    return first, again
