"""python -m t2t_jax.train RECIPE [--data DIR] [--init-from CHECKPOINT] [--workdir DIR] [any field]

Trains a model. The run lives in its workdir: checkpoints/, metrics.jsonl, report.html to look at. The same command
again continues from the last checkpoint, bit for bit as if it had never stopped. SIGTERM or Ctrl-C: the run saves after
its current step and ends with exit code 0.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import tyro

from t2t_common.data.classes import for_run, other_order
from t2t_common.evaluation.accuracy import Accuracy
from t2t_common.evaluation.evaluate_command import new_confusion
from t2t_common.io import cli
from t2t_common.io.files import ensure_writable
from t2t_common.io.terminal import say
from t2t_common.run import resume_check
from t2t_common.run.banner import start_block
from t2t_common.run.resume_check import with_saved_head
from t2t_common.run.save_policy import EPOCH_LOSS, Saving, run_metadata
from t2t_common.run.warnings import evaluation_warnings, head_note, schedule_warnings
from t2t_common.workdir.folder import check_workdir, note_not_recognised
from t2t_common.workdir.interrupt import RunInterruptedError
from t2t_common.workdir.lock import locked
from t2t_config import RECIPES, Recipe, describe_recipe, epoch_lr
from t2t_config import recipe as named_recipe
from t2t_config.flops import training_flops
from t2t_config.weights.load_report import LoadReport
from t2t_jax.checkpoint import CHECKPOINTS, checkpoint_steps
from t2t_jax.data import (
    Preprocess,
    TrainIterator,
    check_classes,
    classes_with_images,
    data_identity,
    eval_batches,
    head_classes,
    open_source,
    steps_per_epoch,
    train_iterator,
    with_token_labels,
)
from t2t_jax.evaluate import accuracy, forward_on
from t2t_jax.parallel.interrupt import Interruption
from t2t_jax.parallel.mesh import join_processes, make_mesh, put_batch, put_tree
from t2t_jax.parallel.processes import checked_data, ran_on, told_of_loss
from t2t_jax.state import split_model
from t2t_jax.training.checkpoints import TrainingCheckpoints
from t2t_jax.training.divergence import explain
from t2t_jax.training.from_recipe import Sample, TrainStep, build_model, build_sample, build_step, check_recipe
from t2t_jax.training.init_from import begun_classes, start_from
from t2t_jax.training.optim import freeze
from t2t_jax.training.profile import Watch
from t2t_jax.training.reporter import Reporter, TrainingDivergedError
from t2t_jax.training.step import TrainState, init_state


@dataclasses.dataclass
class Run:
    """A run that is ready to start: the parts that the loop puts together."""

    recipe: Recipe
    how: Preprocess
    class_names: list[str] | None
    classes: set[int]
    """Of which the data have images."""
    data: dict[str, Any]
    """What the images are, see t2t_common/data/fingerprint.py."""
    ran_on: dict[str, Any]
    """Processes and devices."""
    steps_per_epoch: int
    iterator: TrainIterator
    state: TrainState
    train_step: TrainStep
    sample: Sample
    evaluate: Callable[..., Accuracy]
    """(arrays, confusion matrix to add to, or None) -> accuracy on the validation images."""
    started_from: LoadReport | None = None
    notes: list[str] = dataclasses.field(default_factory=list)
    """What the user should know before the first step: the order of the classes, files passed over, the head."""

    @property
    def metadata(self) -> dict[str, Any]:
        """What a checkpoint says about itself: enough to rebuild the model and its input; recipe, data, devices."""
        return run_metadata(self.recipe, self.how, self.class_names, data=self.data, ran_on=self.ran_on)


def prepare(
    recipe: Recipe,
    *,
    init_from: str | Path | None = None,
    fresh_head: bool = False,
    mesh: str | None = None,
    class_names: Sequence[str] | None = None,
) -> Run:
    """Opens the data, builds model and optimiser, and sets the state before the first step.

    Args:
        recipe: what to train.
        init_from: weights to start from.
        fresh_head: whether their classifier is left out.
        mesh: the devices and what they share, such as "data=4,fsdp=2"; None takes all, for data.
        class_names: in the order of the run that goes on; None takes that of the weights or of the data.

    Raises:
        FileNotFoundError, ValueError: the data or the weights to start from cannot be used; the message says why.
    """
    # --- Devices --------------------------------------------------------------------------------------------
    devices = make_mesh(mesh)
    check_recipe(recipe, devices)
    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}

    # --- Data -----------------------------------------------------------------------------------------------
    if recipe.data is None:
        raise ValueError("this recipe has no data of its own: add --data DIR")
    train_source = open_source(recipe.data, "train", recipe.num_classes)
    val_source = open_source(recipe.data, "val", recipe.num_classes)
    num_classes, expected = head_classes(recipe, train_source, val_source), recipe.num_classes
    check_classes(train_source, num_classes)
    check_classes(val_source, num_classes)
    recipe = dataclasses.replace(recipe, num_classes=num_classes)
    note = head_note(expected, num_classes, max(train_source.num_classes, val_source.num_classes))
    new_confusion(num_classes)  # which the first evaluation needs: rather now than after an epoch
    train_source = with_token_labels(train_source, recipe)
    how = Preprocess.of_recipe(recipe)
    epoch_steps = steps_per_epoch(train_source, recipe.batch_size)

    # --- Model ----------------------------------------------------------------------------------------------
    model = build_model(recipe)
    started_from, head = None, None
    if init_from is not None:
        started_from, head = start_from(model, init_from, fresh_head=fresh_head)
        started_from.check_finite()
    data = checked_data(data_identity(train_source, val_source))
    train_source, val_source, notes = for_run(train_source, val_source, num_classes, begun=class_names, head=head)
    forward = forward_on(devices, split_model(model)[0])
    model.train()
    graphdef, params, buffers = split_model(model)
    params, buffers = freeze(params, buffers, recipe.frozen or ())

    # --- Optimiser, state, step -----------------------------------------------------------------------------
    reading: dict[str, Any] = {"threads": recipe.data_threads, "timeout": recipe.data_timeout}
    no_decay = model.no_weight_decay()
    tx, train_step = build_step(recipe, graphdef, params, no_decay, steps_per_epoch=epoch_steps, mesh=devices)
    state = init_state(params, buffers, tx, seed=recipe.seed, average=recipe.ema_decay is not None)
    return Run(
        recipe=recipe,
        how=how,
        class_names=train_source.class_names,
        classes=classes_with_images(train_source, val_source),
        data=data,
        ran_on=ran_on(devices),
        steps_per_epoch=epoch_steps,
        iterator=train_iterator(train_source, recipe, how, put=functools.partial(put_batch, mesh=devices), **processes),
        state=put_tree(state, devices),
        train_step=train_step,
        sample=build_sample(recipe, mesh=devices),
        evaluate=lambda arrays, confusion=None: accuracy(
            forward,
            arrays,
            eval_batches(val_source, how, recipe.batch_size, **reading, **processes),
            confusion=confusion,
        ),
        started_from=started_from,
        notes=[*notes, *([] if note is None else [note])],
    )


def train(
    recipe: Recipe,
    workdir: str | Path,
    *,
    init_from: str | Path | None = None,
    fresh_head: bool = False,
    mesh: str | None = None,
    watch: Watch | None = None,
) -> Accuracy:
    """Trains `recipe` in `workdir`, or continues the run that is there; the final accuracy. Other arguments: `prepare`,
    and what `watch` asks for.

    Raises:
        FileNotFoundError, ValueError: the data, the weights to start from or the workdir cannot be used.
        TrainingDivergedError: loss or gradient is no longer finite; the message says what went first, and the
            checkpoints written before are sound.
        RunInterruptedError: asked to stop (see `Interruption`); saved, so that the same call continues.
    """
    recipe = with_saved_head(recipe, Path(workdir))
    begin = functools.partial(prepare, recipe, init_from=init_from, fresh_head=fresh_head, mesh=mesh)
    run = begin(class_names=begun_classes(workdir))
    workdir = ensure_writable(workdir)
    recipe, last_step = run.recipe, run.recipe.total_epochs * run.steps_per_epoch
    result = lock = None
    with contextlib.ExitStack() as stack:
        interruption = stack.enter_context(Interruption())
        if jax.process_index() == 0:
            lock = stack.enter_context(locked(workdir))
        check_workdir(workdir, "t2t_jax")
        checkpoints = stack.enter_context(
            TrainingCheckpoints(workdir, keep=recipe.keep_checkpoints, keep_best=recipe.keep_best)
        )
        if stored := other_order(checkpoints.metadata.get("class_names"), run.class_names):
            run = begin(class_names=stored)
        first_step = resume(run, checkpoints, workdir)
        reporter = stack.enter_context(
            Reporter(
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
                watch=watch,
            )
        )
        stack.enter_context(explained(begin, checkpoints, workdir))
        stack.enter_context(told_of_loss())
        run.iterator.unreadable.say = reporter.say
        reporter.continue_epoch(checkpoints.metadata.get(EPOCH_LOSS, (0.0, 0)))
        if first_step < last_step:
            begun = {"first_step": first_step, "steps_per_epoch": run.steps_per_epoch}
            lines = start_block(recipe, run.how, run.state.raw, workdir=workdir, devices=reporter.devices, **begun)
            reporter.start(lines)
        saving = Saving(run, reporter, checkpoints, interruption, lock)
        if first_step == last_step:
            reporter.say(f"the run in {workdir} is finished: all {last_step} steps are done")
        elif first_step:
            reporter.say(f"continuing at step {first_step} of {last_step} in {workdir}")
            names = map(str, checkpoint_steps(workdir / CHECKPOINTS))
            if (note := note_not_recognised(workdir, names)) is not None:
                reporter.say(note)
        elif run.started_from is not None:
            reporter.say(str(run.started_from))
        for note in run.notes:
            reporter.say(f"note: {note}")
        reporter.warn(schedule_warnings(recipe, run.steps_per_epoch))
        for epoch in range(first_step // run.steps_per_epoch, recipe.total_epochs):
            train_epoch(run, epoch, reporter, saving, first_step)
            is_due = epoch + 1 == recipe.total_epochs or (epoch + 1) % recipe.eval_every == 0
            result = evaluate_and_report(run, epoch, reporter) if is_due else None
            saving.after_epoch(epoch, result)
        report_corrupt(run, last_step, reporter)
        checkpoints.wait()  # before the run's page says that it is finished
    return run.evaluate(run.state.best) if result is None else result


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


@contextlib.contextmanager
def explained(begin: Callable[..., Run], checkpoints: TrainingCheckpoints, workdir: Path) -> Iterator[None]:
    """Adds to a `TrainingDivergedError` what went first, by a second run from the last good state (see diverged.py)."""
    try:
        yield
    except TrainingDivergedError as error:
        try:
            checkpoints.wait()
            run = begin(class_names=checkpoints.metadata.get("class_names"))
            done = resume(run, checkpoints, workdir)
            finding = explain(run.train_step, run.state, run.iterator, done=done, broken=error.step)
        except Exception as failure:  # whatever it is, the divergence is the news
            finding = f"what went first cannot be told ({failure})"
        raise TrainingDivergedError(f"{error}; {finding}", error.step) from error


def evaluate_and_report(run: Run, epoch: int, reporter: Reporter) -> Accuracy:
    """Accuracy on the validation images after `epoch`: one line, and in the run's page what classes are taken for."""
    assert run.recipe.num_classes is not None  # `prepare` set it
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


def resume(run: Run, checkpoints: TrainingCheckpoints, workdir: Path) -> int:
    """Sets `run` to the latest checkpoint that is sound; the number of steps done (0 without one).

    Raises:
        ValueError: as `t2t_common.run.resume_check.resume`.
    """

    def restore() -> int:
        run.state = checkpoints.restore(run.state, run.iterator)
        return int(run.state.step)

    return resume_check.resume(run, checkpoints, workdir, restore)


# --- Command line -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command line."""

    recipe: tyro.conf.OmitArgPrefixes[Recipe]
    init_from: Path | None = None
    """Weights to start from: Orbax folder, .pth, .pth.tar, .safetensors, or the folder of a run in either framework; a
    head for other classes starts anew."""
    fresh_head: bool = False
    """Train a new classifier, whatever the weights to start from have."""
    workdir: Path | None = None
    """Folder of the run; None takes workdir/RECIPE."""
    watch: tyro.conf.OmitArgPrefixes[Watch] = dataclasses.field(default_factory=Watch)
    mesh: str | None = None
    """Devices for parts of the batch and for parts of the weights too, such as data=4,fsdp=2; None takes all for
    data."""
    distributed: str | None = None
    """Processes on several machines: HOST:PORT,COUNT,INDEX, or auto, or off; None joins them where the cluster's
    environment (TPU pod, Slurm, Open MPI) tells of others."""


def main(args: Sequence[str]) -> int:
    """The command; its exit code."""
    if not args or args[0] in ("-h", "--help"):
        names = f"recipes: {', '.join(RECIPES)}"
        if not args:
            raise ValueError(f"the recipe is missing: python -m t2t_jax.train RECIPE; {names}")
        print(f"{__doc__}\n{names}\n\npython -m t2t_jax.train RECIPE --help shows a recipe and its options")
        return cli.OK
    name = args[0]
    start = Options(named_recipe(name))
    command = f"python -m t2t_jax.train {name}"
    options = cli.parse(Options, args[1:], prog=command, description=describe_recipe(name), default=start)
    workdir = options.workdir or Path("workdir") / name
    join_processes(options.distributed)
    try:
        with told_of_loss():
            result = train(
                options.recipe,
                workdir,
                init_from=options.init_from,
                fresh_head=options.fresh_head,
                mesh=options.mesh,
                watch=options.watch,
            )
    except TrainingDivergedError as error:
        print(f"error: {error}", file=sys.stderr)
        return cli.FAILED
    except RunInterruptedError as stop:
        say(str(stop))
        return cli.OK
    say(f"finished: top-1 {result.top1:.2f} % ({result.top1_correct} of {result.images}), weights in {workdir}")
    return cli.OK


if __name__ == "__main__":
    cli.run_and_end(main)
