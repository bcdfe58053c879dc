"""Training loop for both frameworks: epochs, evaluation, checkpoints, logging.

The framework-specific parts, such as the training step and checkpoint reading, are provided by a `Backend`.
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
    """Components of a run that is ready to start.

    Attributes:
        preprocess: Preprocessing of the images.
        classes: Classes that have images in the data.
        data: Identity of the data, see t2t_common/data/fingerprint.py.
        ran_on: Number of processes and devices, and kind of device.
        iterator: Infinite iterator over training batches, on the device.
        state: Weights, optimizer state and step.
        train_step: (state, batch) -> (state, metrics).
        sample: (state, batch) -> a few images as the model sees them in training.
        evaluate: (weights, confusion matrix to add to, or None) -> accuracy on the validation images.
        inspectable_step: Makes a step that reports non-finite values (see `t2t_jax.training.divergence`), or None.
        started_from: Report on the weights loaded before the first step, if any.
        notes: Notes for the user before the first step: order of the classes, ignored files, size of the head.
    """

    recipe: Recipe
    preprocess: Preprocess
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
    inspectable_step: Any = None
    started_from: LoadReport | None = None
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def metadata(self) -> dict[str, Any]:
        """Checkpoint metadata: how to rebuild the model and its input; recipe, data and devices."""
        return run_metadata(self.recipe, self.preprocess, self.class_names, data=self.data, ran_on=self.ran_on)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backend:
    """Framework-specific functions used by the training loop.

    Attributes:
        package: Package that reads and writes the checkpoints of the workdir.
        is_main_process: Whether this process holds the lock of the workdir.
        prepare: (recipe, class_names=...) -> the run before its first step.
        saved_classes: workdir -> class names of the run saved there; None if nothing was saved.
        interruption: Context manager that records SIGTERM and Ctrl-C.
        open_checkpoints: `TrainingCheckpoints` of the framework.
        checkpoint_names: folder -> names of the checkpoints in it.
        make_reporter: Constructor of `Reporter`, with the device information of the framework filled in.
        around: (prepare, checkpoints, workdir) -> context manager around training, which may explain its exceptions.
    """

    package: Literal["t2t_jax", "t2t_torch"]
    is_main_process: bool
    prepare: Callable[..., Run]
    saved_classes: Callable[[str | Path], list[str] | None]
    interruption: Callable[[], AbstractContextManager[Any]]
    open_checkpoints: Callable[..., AbstractContextManager[Any]]
    checkpoint_names: Callable[[Path], Iterable[str]]
    make_reporter: Callable[..., Reporter]
    around: Callable[[Callable[..., Run], Any, Path], AbstractContextManager[None]] = lambda *_: (
        contextlib.nullcontext()
    )


def train(recipe: Recipe, workdir: str | Path, backend: Backend) -> Accuracy:
    """Train `recipe` in `workdir`, or resume the run in it.

    Returns:
        The accuracy after the last step.

    Raises:
        FileNotFoundError, ValueError: The data, the initial weights or the workdir cannot be used.
        TrainingDivergedError: The loss or gradient is no longer finite; earlier checkpoints are valid.
        RunInterruptedError: The run was asked to stop; it has been saved, and the same call resumes it.
    """
    recipe = with_saved_head(recipe, Path(workdir))

    def prepare(class_names: list[str] | None) -> Run:
        return backend.prepare(recipe, class_names=class_names)

    run = prepare(backend.saved_classes(workdir))
    workdir = ensure_writable(workdir)
    result = lock = None
    with contextlib.ExitStack() as stack:
        interruption = stack.enter_context(backend.interruption())
        if backend.is_main_process:
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
        report_start(run, backend, reporter, workdir, first_step, last_step)
        saving = Saving(run, reporter, checkpoints, interruption, lock)
        for epoch in range(first_step // run.steps_per_epoch, recipe.total_epochs):
            train_epoch(run, epoch, reporter, saving, first_step)
            is_due = epoch + 1 == recipe.total_epochs or (epoch + 1) % recipe.eval_every == 0
            result = evaluate_and_report(run, epoch, reporter) if is_due else None
            saving.after_epoch(epoch, result)
        report_corrupt(run, last_step, reporter)
        checkpoints.wait()  # before the report page shows the run as finished
    return run.evaluate(run.state.best) if result is None else result


def resume(run: Run, checkpoints: Any, workdir: Path) -> int:
    """Restore `run` from the latest valid checkpoint and return the number of completed steps, 0 without a checkpoint.

    Raises:
        ValueError: See `t2t_common.run.resume_check.resume`.
    """

    def restore() -> int:
        run.state = checkpoints.restore(run.state, run.iterator)
        return int(run.state.step)

    return resume_check.resume(run, checkpoints, workdir, restore)


def make_reporter(run: Run, backend: Backend, workdir: Path, first_step: int, last_step: int) -> Reporter:
    """Create the reporter of the run."""
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


def report_start(
    run: Run, backend: Backend, reporter: Reporter, workdir: Path, first_step: int, last_step: int
) -> None:
    """Print the start of the log: a summary of the run, its first step or initial weights, notes and warnings."""
    if first_step < last_step:
        begun = {"first_step": first_step, "steps_per_epoch": run.steps_per_epoch}
        lines = start_block(
            run.recipe, run.preprocess, run.state.raw, workdir=workdir, devices=reporter.devices, **begun
        )
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
    """Train one epoch, or its part after `steps_done`. On return, all its losses have been checked to be finite."""
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
    """Evaluate after `epoch`, log the accuracy and show the confusion matrix on the report page."""
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
    """Log the images that could not be read, if any, in one line."""
    if names := run.iterator.unreadable.names:
        text = f"corrupt images skipped: {len(names)}: {'; '.join(names)}"
        reporter.line(text, {"step": step, "corrupt_images": names})
