"""The training loop, the same for both frameworks: epochs, evaluation, checkpoints, log.

What differs between them is the step and how a checkpoint is read: `Backend`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

from t2t_common.data.classes import other_order
from t2t_common.data.preprocess import Preprocess
from t2t_common.evaluation.accuracy import Accuracy
from t2t_common.evaluation.evaluate_command import new_confusion
from t2t_common.io.files import ensure_writable
from t2t_common.run import resume_check
from t2t_common.run.banner import start_block
from t2t_common.run.reporter import Reporter
from t2t_common.run.resume_check import with_saved_head
from t2t_common.run.save_policy import EPOCH_LOSS, Saving, run_metadata
from t2t_common.run.warnings import evaluation_warnings, schedule_warnings
from t2t_common.workdir.folder import CHECKPOINTS, check_workdir, note_not_recognised
from t2t_common.workdir.lock import locked
from t2t_config import Recipe, epoch_lr
from t2t_config.flops import training_flops
from t2t_config.weights.load_report import LoadReport


@dataclasses.dataclass
class Run:
    """A run that is ready to start: the parts that the loop puts together.

    Attributes:
        how: how images become inputs of the model.
        classes: those of which the data have images.
        data: identity of the data, see t2t_common/data/fingerprint.py.
        ran_on: number of processes and devices, and their kind.
        iterator: endless batches for training, on the device.
        state: weights, optimiser and step.
        train_step: (state, batch) -> (state, metrics).
        sample: (state, batch) -> a few images as the model gets them in training.
        evaluate: (weights, confusion matrix to add to, or None) -> accuracy on the validation images.
        started_from: what was loaded before the first step, if anything was.
        notes: what the user should know before the first step: the order of the classes, files left out, the head.
    """

    recipe: Recipe
    how: Preprocess
    class_names: list[str] | None
    classes: set[int]
    data: dict[str, Any]
    ran_on: dict[str, Any]
    steps_per_epoch: int
    iterator: Any
    state: Any
    train_step: Callable[[Any, Any], tuple[Any, Any]]
    sample: Callable[[Any, Any], Any]
    evaluate: Callable[..., Accuracy]
    started_from: LoadReport | None = None
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def metadata(self) -> dict[str, Any]:
        """What a checkpoint says about itself: enough to rebuild the model and its input; recipe, data, devices."""
        return run_metadata(self.recipe, self.how, self.class_names, data=self.data, ran_on=self.ran_on)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backend:
    """What the loop needs of a framework.

    Attributes:
        package: whose checkpoints the workdir holds.
        leads: whether this process holds the lock of the workdir.
        prepare: (recipe, class_names=...) -> the run before its first step.
        begun_classes: class names of the run in a workdir, None where nothing was saved.
        interruption: a context in which SIGTERM and Ctrl-C are noted.
        open_checkpoints: `TrainingCheckpoints` of the framework.
        checkpoint_names: of a folder, the names of the checkpoints in it.
        make_reporter: `Reporter` with what the framework knows about its devices.
        around: (prepare, checkpoints, workdir) -> a context for the steps, which may explain what they raise.
    """

    package: Literal["t2t_jax", "t2t_torch"]
    leads: bool
    prepare: Callable[..., Run]
    begun_classes: Callable[[str | Path], list[str] | None]
    interruption: Callable[[], AbstractContextManager[Any]]
    open_checkpoints: Callable[..., AbstractContextManager[Any]]
    checkpoint_names: Callable[[Path], Iterable[str]]
    make_reporter: Callable[..., Reporter]
    around: Callable[[Callable[..., Run], Any, Path], AbstractContextManager[None]] = lambda *_: (
        contextlib.nullcontext()
    )


def train(recipe: Recipe, workdir: str | Path, backend: Backend) -> Accuracy:
    """Train `recipe` in `workdir`, or continue the run that is there.

    Returns:
        The accuracy after the last step.

    Raises:
        FileNotFoundError, ValueError: the data, the weights to start from or the workdir cannot be used.
        TrainingDivergedError: loss or gradient is no longer finite; the checkpoints written before are sound.
        RunInterruptedError: asked to stop; saved, so that the same call continues.
    """
    recipe = with_saved_head(recipe, Path(workdir))

    def prepare(class_names: list[str] | None) -> Run:
        return backend.prepare(recipe, class_names=class_names)

    run = prepare(backend.begun_classes(workdir))
    workdir = ensure_writable(workdir)
    result = lock = None
    with contextlib.ExitStack() as stack:
        interruption = stack.enter_context(backend.interruption())
        if backend.leads:
            lock = stack.enter_context(locked(workdir))
        check_workdir(workdir, backend.package)
        recipe = run.recipe
        checkpoints = stack.enter_context(
            backend.open_checkpoints(workdir, keep=recipe.keep_checkpoints, keep_best=recipe.keep_best)
        )
        if stored := other_order(checkpoints.metadata.get("class_names"), run.class_names):
            run = prepare(stored)
        first_step, last_step = resume(run, checkpoints, workdir), recipe.total_epochs * run.steps_per_epoch
        reporter = stack.enter_context(make_reporter(run, backend, workdir, first_step, last_step))
        stack.enter_context(backend.around(prepare, checkpoints, workdir))
        run.iterator.unreadable.say = reporter.say
        reporter.continue_epoch(checkpoints.metadata.get(EPOCH_LOSS, (0.0, 0)))
        say_what_starts(run, backend, reporter, workdir, first_step, last_step)
        saving = Saving(run, reporter, checkpoints, interruption, lock)
        for epoch in range(first_step // run.steps_per_epoch, recipe.total_epochs):
            train_epoch(run, epoch, reporter, saving, first_step)
            is_due = epoch + 1 == recipe.total_epochs or (epoch + 1) % recipe.eval_every == 0
            result = evaluate_and_report(run, epoch, reporter) if is_due else None
            saving.after_epoch(epoch, result)
        report_corrupt(run, last_step, reporter)
        checkpoints.wait()  # before the run's page says that it is finished
    return run.evaluate(run.state.best) if result is None else result


def resume(run: Run, checkpoints: Any, workdir: Path) -> int:
    """Set `run` to the latest checkpoint that is sound; the number of steps done, 0 without a checkpoint.

    Raises:
        ValueError: as `t2t_common.run.resume_check.resume`.
    """

    def restore() -> int:
        run.state = checkpoints.restore(run.state, run.iterator)
        return int(run.state.step)

    return resume_check.resume(run, checkpoints, workdir, restore)


def make_reporter(run: Run, backend: Backend, workdir: Path, first_step: int, last_step: int) -> Reporter:
    """The log of the run."""
    recipe = run.recipe
    return backend.make_reporter(
        workdir,
        first_step=first_step,
        last_step=last_step,
        batch_size=recipe.batch_size,
        log_every=recipe.log_every,
        flops_per_image=training_flops(
            recipe.model,
            img_size=recipe.img_size,
            in_chans=recipe.in_chans,
            num_classes=recipe.num_classes,
            **recipe.overrides,
        ),
        config=run.metadata,
    )


def say_what_starts(
    run: Run, backend: Backend, reporter: Reporter, workdir: Path, first_step: int, last_step: int
) -> None:
    """The first lines of the log: the run in short, where it continues or what it starts from, notes and warnings."""
    if first_step < last_step:
        begun = {"first_step": first_step, "steps_per_epoch": run.steps_per_epoch}
        lines = start_block(run.recipe, run.how, run.state.raw, workdir=workdir, devices=reporter.devices, **begun)
        reporter.start(lines)
    if first_step == last_step:
        reporter.say(f"the run in {workdir} is finished: all {last_step} steps are done")
    elif first_step:
        reporter.say(f"continuing at step {first_step} of {last_step} in {workdir}")
        note = note_not_recognised(workdir, backend.checkpoint_names(workdir / CHECKPOINTS))
        if note is not None:
            reporter.say(note)
    elif run.started_from is not None:
        reporter.say(str(run.started_from))
    for note in run.notes:
        reporter.say(f"note: {note}")
    reporter.warn(schedule_warnings(run.recipe, run.steps_per_epoch))


def train_epoch(run: Run, epoch: int, reporter: Reporter, saving: Saving, steps_done: int) -> None:
    """One epoch, or what `steps_done` leave of it; every loss of it has been read, and was finite, at the end."""
    lr = epoch_lr(run.recipe, epoch)
    start = time.perf_counter()
    last = (epoch + 1) * run.steps_per_epoch
    first = max(epoch * run.steps_per_epoch, steps_done) + 1
    for step in range(first, last + 1):
        with reporter.waiting():
            batch = next(run.iterator)
        if step == 1:
            reporter.show_samples(run.sample(run.state, batch), step=step)
        run.state, metrics = run.train_step(run.state, batch)
        reporter.step(step, metrics, lr=lr, epoch=epoch)
        if step < last:
            saving.after_step(step)
    loss = reporter.flush()
    seconds = time.perf_counter() - start
    images = (last + 1 - first) * run.recipe.batch_size
    reporter.line(
        f"epoch {epoch + 1:>3}/{run.recipe.total_epochs}   loss {loss:.4f}   lr {lr:.2e}   "
        f"{images / seconds:,.0f} images/s",
        {"step": last, "epoch": epoch, "epoch_loss": loss, "seconds": seconds},
    )


def evaluate_and_report(run: Run, epoch: int, reporter: Reporter) -> Accuracy:
    """Accuracy on the validation images after `epoch`: a line of the log, and a confusion matrix on the run's page."""
    assert run.recipe.num_classes is not None  # `open_data` set it
    confusion, step = new_confusion(run.recipe.num_classes), (epoch + 1) * run.steps_per_epoch
    result = run.evaluate(run.state.best, confusion)
    reporter.show_confusion(confusion, step=step)
    reporter.line(
        f"            top-1 {result.top1:.2f} % ({result.top1_correct} of {result.images})",
        {"step": step, "epoch": epoch, **result.figures},
    )
    warnings = evaluation_warnings(confusion, run.recipe, epoch, in_data=run.classes, names=run.class_names)
    reporter.warn(warnings, again=epoch + 1 == run.recipe.total_epochs)
    return result


def report_corrupt(run: Run, step: int, reporter: Reporter) -> None:
    """One line about the images that could not be read, if there were any."""
    if names := run.iterator.unreadable.names:
        text = f"corrupt images skipped: {len(names)}: {'; '.join(names)}"
        reporter.line(text, {"step": step, "corrupt_images": names})
