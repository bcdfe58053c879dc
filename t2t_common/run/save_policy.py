"""When to write checkpoints: every N steps and epochs, after a better evaluation, and when the run is interrupted."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Protocol

from t2t_common.data.preprocess import Preprocess
from t2t_common.evaluation.accuracy import Accuracy
from t2t_common.run.reporter import Reporter
from t2t_common.workdir.checkpoints import TOP1
from t2t_common.workdir.interrupt import Interruption, RunInterruptedError
from t2t_common.workdir.lock import Lock
from t2t_config import Recipe

EPOCH_LOSS = "epoch_loss"
"""Checkpoint metadata key: sum and number of the losses so far, if the checkpoint was written within an epoch."""

DATA = "data_identity"
"""Checkpoint metadata key: identity of the training data (see t2t_common/data/fingerprint.py)."""

RAN_ON = "ran_on"
"""Checkpoint metadata key: number of processes and devices, kind of device, and mesh."""


def run_metadata(
    recipe: Recipe,
    preprocess: Preprocess,
    class_names: list[str] | None,
    *,
    data: Mapping[str, Any] | None = None,
    ran_on: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the checkpoint metadata of a run: how to rebuild the model and its input; recipe, data and devices."""
    facts: dict[str, Any] = {"model": recipe.model, "num_classes": recipe.num_classes, **recipe.overrides}
    if class_names is not None:
        facts["class_names"] = class_names
    facts |= {name: fact for name, fact in ((DATA, data), (RAN_ON, ran_on)) if fact is not None}
    everything = {**facts, **dataclasses.asdict(preprocess), "recipe": dataclasses.asdict(recipe)}
    return json.loads(json.dumps(everything))  # tuples become lists, as after reading the JSON back


def saved_by(recipe: Recipe, steps_per_epoch: int) -> int:
    """Return the step of the second checkpoint: when writing it starts, the first one is complete on disk."""
    every = [steps_per_epoch * recipe.checkpoint_every, recipe.checkpoint_every_steps or 0]
    return sorted({times * steps for steps in every if steps for times in (1, 2)})[1]


class Run(Protocol):
    """The parts of a run of either framework that `Saving` uses."""

    recipe: Recipe
    steps_per_epoch: int
    state: Any
    iterator: Any

    @property
    def metadata(self) -> dict[str, Any]: ...


class Checkpoints(Protocol):
    """The methods of either framework's `TrainingCheckpoints` that `Saving` uses."""

    def save(self, state: Any, iterator: Any, metadata: Mapping[str, Any]) -> None: ...

    def wait(self) -> None: ...

    def is_best(self, top1: float) -> bool: ...


class Saving:
    """Write checkpoints as the recipe requires. All losses up to a checkpoint have been checked to be finite."""

    def __init__(
        self,
        run: Run,
        reporter: Reporter,
        checkpoints: Checkpoints,
        interruption: Interruption,
        lock: Lock | None = None,
    ) -> None:
        """`lock` is the workdir's lock, checked after every step; with several processes, only the first has it."""
        self._run, self._reporter = run, reporter
        self._checkpoints, self._interruption, self._lock = checkpoints, interruption, lock

    def after_step(self, step: int) -> None:
        """Save if due, after a step that is not the last of its epoch.

        Raises:
            ValueError: The checkpoint cannot be written, or another run took the workdir (`LostWorkdirError`).
            RunInterruptedError: The run was asked to stop; it has been saved.
        """
        self._save_if(self._step_is_due(step), step, top1=None)

    def after_epoch(self, epoch: int, result: Accuracy | None) -> None:
        """Save if due, after `epoch` (from 0) has been reported; `result` is its evaluation result, if any.

        Raises:
            ValueError: The checkpoint cannot be written.
            RunInterruptedError: The run was asked to stop before its last epoch; it has been saved.
        """
        recipe, step = self._run.recipe, (epoch + 1) * self._run.steps_per_epoch
        due = epoch + 1 == recipe.total_epochs or (epoch + 1) % recipe.checkpoint_every == 0
        top1 = None if result is None else result.top1
        is_best = top1 is not None and self._checkpoints.is_best(top1)
        self._save_if(due or is_best or self._step_is_due(step), step, top1)

    def _step_is_due(self, step: int) -> bool:
        every = self._run.recipe.checkpoint_every_steps
        return every is not None and step % every == 0

    def _save_if(self, due: bool, step: int, top1: float | None) -> None:
        run = self._run
        if self._lock is not None and (text := self._lock.check()) is not None:
            self._reporter.say(text)
        asked_by = self._interruption.requested(step)
        if due or asked_by:
            facts = {EPOCH_LOSS: self._reporter.epoch_loss(), TOP1: top1}
            metadata = {**run.metadata, **{name: fact for name, fact in facts.items() if fact is not None}}
            self._checkpoints.save(run.state, run.iterator, metadata)
        last_step = run.recipe.total_epochs * run.steps_per_epoch
        if asked_by and step < last_step:
            self._checkpoints.wait()
            raise RunInterruptedError(
                f"stopped by {asked_by}, saved at step {step} of {last_step}: run the same command to resume"
            )
