from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from t2t_common.evaluation.accuracy import Accuracy
from t2t_common.run.save_policy import EPOCH_LOSS, Saving, saved_by
from t2t_common.workdir.checkpoints import TOP1
from t2t_common.workdir.interrupt import RunInterruptedError
from t2t_common.workdir.lock import LostWorkdirError
from t2t_config import Recipe

STEPS_PER_EPOCH, EPOCHS = 4, 3


def saved(
    *, every: int = 100, every_steps: int | None = None, best: float = 100.0, asked_at: int | None = None
) -> list[tuple[int, Any, Any]]:
    """(step, losses of the epoch, accuracy) of each save of a run whose evaluations give 50 %, 60 % and 55 %."""
    done: list[tuple[int, Any, Any]] = []
    at = SimpleNamespace(step=0)
    recipe = Recipe("t2t_vit_micro", epochs=EPOCHS, cooldown_epochs=0, checkpoint_every=every)
    recipe = dataclasses.replace(recipe, checkpoint_every_steps=every_steps)
    run: Any = SimpleNamespace(
        recipe=recipe, steps_per_epoch=STEPS_PER_EPOCH, state=None, iterator=None, metadata={"model": "m"}
    )

    def save(state: object, iterator: object, metadata: dict[str, Any]) -> None:
        assert metadata["model"] == "m"
        done.append((at.step, metadata.get(EPOCH_LOSS), metadata.get(TOP1)))

    waited: list[int] = []
    checkpoints: Any = SimpleNamespace(save=save, is_best=lambda top1: top1 > best, wait=lambda: waited.append(at.step))
    losses = lambda: (float(at.step), at.step % STEPS_PER_EPOCH) if at.step % STEPS_PER_EPOCH else None  # noqa: E731
    reporter: Any = SimpleNamespace(epoch_loss=losses)
    asked = lambda step: "SIGTERM" if asked_at is not None and step >= asked_at else None  # noqa: E731
    interruption: Any = SimpleNamespace(requested=asked)
    saving = Saving(run, reporter, checkpoints, interruption, SimpleNamespace(check=lambda: None))  # type: ignore[arg-type]
    try:
        for epoch, correct in enumerate((10, 12, 11)):
            for _ in range(STEPS_PER_EPOCH - 1):
                at.step += 1
                saving.after_step(at.step)
            at.step += 1
            saving.after_epoch(epoch, Accuracy(20, correct, 20))
    except RunInterruptedError:
        assert waited == [at.step]  # it is on disk when the run says so
    return done


def test_the_last_epoch_is_always_saved():
    assert saved() == [(12, None, 55.0)]


def test_epochs_and_steps_save():
    assert saved(every=2) == [(8, None, 60.0), (12, None, 55.0)]
    assert saved(every_steps=3) == [(3, (3.0, 3), None), (6, (6.0, 2), None), (9, (9.0, 1), None), (12, None, 55.0)]


def test_a_better_evaluation_saves():
    assert saved(best=57.0) == [(8, None, 60.0), (12, None, 55.0)]


@pytest.mark.parametrize("step", [2, 4])
def test_a_run_that_is_asked_to_stop_saves_and_ends(step: int):
    """The last step of an epoch is saved after its evaluation."""
    assert saved(asked_at=step) == [(2, (2.0, 2), None) if step == 2 else (4, None, 50.0)]


def test_a_run_that_is_asked_at_its_last_step_has_ended():
    assert saved(asked_at=12) == [(12, None, 55.0)]


@pytest.mark.parametrize(
    ("every", "every_steps", "step"), [(1, None, 8), (2, None, 16), (1, 3, 4), (1, 4, 8), (9, 5, 10)]
)
def test_the_second_checkpoint_of_a_run(every: int, every_steps: int | None, step: int):
    recipe = Recipe("t2t_vit_micro", checkpoint_every=every, checkpoint_every_steps=every_steps)
    assert saved_by(recipe, STEPS_PER_EPOCH) == step


def test_the_lock_is_looked_at_after_every_step_and_before_anything_is_saved():
    said: list[str] = []
    checks = iter(["taken again", None])
    run: Any = SimpleNamespace(recipe=Recipe("t2t_vit_micro"), steps_per_epoch=STEPS_PER_EPOCH)
    reporter: Any = SimpleNamespace(say=said.append)
    interruption: Any = SimpleNamespace(requested=lambda step: None)
    lock: Any = SimpleNamespace(check=lambda: next(checks))
    saving = Saving(run, reporter, checkpoints=None, interruption=interruption, lock=lock)  # type: ignore[arg-type]
    saving.after_step(1)
    saving.after_step(2)
    assert said == ["taken again"]

    def lost() -> None:
        raise LostWorkdirError("another has it")

    lock.check = lost
    interruption.requested = lambda step: "SIGTERM"
    with pytest.raises(LostWorkdirError):
        saving.after_step(3)
