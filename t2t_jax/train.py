"""python -m t2t_jax.train RECIPE [--data DIR] [--init-from CHECKPOINT] [--workdir DIR] [any field]

Trains a model. The run lives in its workdir: checkpoints/ and metrics.jsonl. The same command again continues
from the last checkpoint, bit for bit as if it had never stopped.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import optax
import tyro
from flax import nnx

from t2t_common import cli
from t2t_config import RECIPES, Recipe, describe_recipe, epoch_lr
from t2t_config import recipe as named_recipe
from t2t_config.load_report import LoadReport
from t2t_jax.checkpoint import TrainingCheckpoints, ensure_writable, init_weights
from t2t_jax.data import (
    Preprocess,
    check_classes,
    eval_batches,
    open_source,
    steps_per_epoch,
    train_iterator,
)
from t2t_jax.evaluate import Accuracy, accuracy, forward_on
from t2t_jax.mesh import AnyMesh, check_batch, join_processes, make_mesh, put_batch, put_tree
from t2t_jax.mixup import Mixup
from t2t_jax.optim import recipe_optimizer
from t2t_jax.random_erasing import RandomErasing
from t2t_jax.registry import create_model
from t2t_jax.report import Reporter, TrainingDivergedError
from t2t_jax.state import Arrays, split_model
from t2t_jax.step import Batch, TrainState, init_state, make_train_step

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]

FREE_TO_CHANGE = ("data", "data_threads", "log_every", "eval_every", "checkpoint_every", "keep_checkpoints")
"""Fields that do not change what a run computes, so a resumed run may have others."""


@dataclasses.dataclass
class Run:
    """A run that is ready to start: the parts that the loop puts together."""

    recipe: Recipe
    how: Preprocess
    class_names: list[str] | None
    steps_per_epoch: int
    iterator: grain.DatasetIterator
    state: TrainState
    train_step: TrainStep
    evaluate: Callable[[Arrays], Accuracy]
    started_from: LoadReport | None = None

    @property
    def metadata(self) -> dict[str, Any]:
        """What a checkpoint says about itself: enough to rebuild the model and its input, and the recipe."""
        facts: dict[str, Any] = {"model": self.recipe.model, "num_classes": self.recipe.num_classes}
        if self.class_names is not None:
            facts["class_names"] = self.class_names
        everything = {**facts, **dataclasses.asdict(self.how), "recipe": dataclasses.asdict(self.recipe)}
        return json.loads(json.dumps(everything))  # tuples become lists, as they will be when read back


def prepare(recipe: Recipe, *, init_from: str | Path | None = None, mesh: str | None = None) -> Run:
    """Opens the data, builds model and optimiser, and sets the state before the first step.

    Args:
        recipe: what to train.
        init_from: weights to start from.
        mesh: the devices and what they share, such as "data=4,fsdp=2"; None takes all, for data.

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
    train_source, val_source = open_source(recipe.data, "train"), open_source(recipe.data, "val")
    num_classes = recipe.num_classes or train_source.num_classes
    check_classes(train_source, num_classes)
    check_classes(val_source, num_classes)
    recipe = dataclasses.replace(recipe, num_classes=num_classes)
    how = Preprocess.of_recipe(recipe)
    epoch_steps = steps_per_epoch(train_source, recipe.batch_size)

    # --- Model ----------------------------------------------------------------------------------------------
    model = build_model(recipe)
    started_from = None if init_from is None else init_weights(model, init_from)
    forward = forward_on(devices, split_model(model)[0])
    model.train()
    graphdef, params, buffers = split_model(model)

    # --- Optimiser, state, step -----------------------------------------------------------------------------
    no_decay = model.no_weight_decay()
    tx, train_step = build_step(recipe, graphdef, params, no_decay, steps_per_epoch=epoch_steps, mesh=devices)
    state = init_state(params, buffers, tx, seed=recipe.seed, average=recipe.ema_decay is not None)
    return Run(
        recipe=recipe,
        how=how,
        class_names=train_source.class_names,
        steps_per_epoch=epoch_steps,
        iterator=train_iterator(train_source, recipe, how, **processes),
        state=put_tree(state, devices),
        train_step=lambda state, batch: train_step(state, put_batch(batch, devices)),
        evaluate=lambda arrays: accuracy(
            forward,
            arrays,
            eval_batches(val_source, how, recipe.batch_size, threads=recipe.data_threads, **processes),
        ),
        started_from=started_from,
    )


def check_recipe(recipe: Recipe, mesh: AnyMesh) -> None:
    """Raises ValueError unless the batch of `recipe` divides among the devices of `mesh` (see `check_batch`)."""
    group = (recipe.mixup_group or recipe.batch_size) if recipe.mixes else None
    check_batch(recipe.batch_size, mesh, parts=recipe.grad_accum_steps, group=group)


def build_step(
    recipe: Recipe,
    graphdef: nnx.GraphDef,
    params: Arrays,
    no_decay: Collection[str],
    *,
    steps_per_epoch: int,
    mesh: AnyMesh,
) -> tuple[optax.GradientTransformation, TrainStep]:
    """Optimiser and training step of `recipe`, whose num_classes is set, on the devices of `mesh`.

    Args:
        recipe: what to train.
        graphdef: of the model in training mode.
        params: its parameters; shapes are enough.
        no_decay: names that weight decay leaves alone.
        steps_per_epoch: of the data.
        mesh: devices of the state and of the batches.
    """
    tx = recipe_optimizer(recipe, params, steps_per_epoch=steps_per_epoch, no_decay=no_decay)
    step = make_train_step(
        graphdef,
        tx,
        label_smoothing=recipe.label_smoothing,
        ema_decay=recipe.ema_decay,
        mixup=build_mixup(recipe),
        random_erasing=RandomErasing(recipe.re_prob) if recipe.re_prob else None,
        grad_accum_steps=recipe.grad_accum_steps,
        remat=recipe.remat,
        mesh=mesh if mesh.size > 1 else None,
    )
    return tx, step


def build_model(recipe: Recipe) -> Any:
    """The freshly initialised model of `recipe`, in evaluation mode."""
    return create_model(
        recipe.model,
        img_size=recipe.img_size,
        in_chans=recipe.in_chans,
        num_classes=recipe.num_classes,
        drop_rate=recipe.drop_rate,
        attn_drop_rate=recipe.attn_drop_rate,
        drop_path_rate=recipe.drop_path_rate,
        dtype=jnp.bfloat16 if recipe.dtype == "bfloat16" else None,
        rngs=nnx.Rngs(recipe.seed),
    )


def build_mixup(recipe: Recipe) -> Mixup | None:
    """Mixup and cutmix of `recipe`, whose num_classes is set; None without."""
    if not recipe.mixes or recipe.num_classes is None:
        return None
    return Mixup(
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        prob=recipe.mixup_prob,
        switch_prob=recipe.mixup_switch_prob,
        mode=recipe.mixup_mode,
        label_smoothing=recipe.label_smoothing,
        num_classes=recipe.num_classes,
        group=recipe.mixup_group,
    )


def train(
    recipe: Recipe, workdir: str | Path, *, init_from: str | Path | None = None, mesh: str | None = None
) -> Accuracy:
    """Trains `recipe` in `workdir`, or continues the run that is there; the final accuracy. Other arguments: `prepare`.

    Raises:
        FileNotFoundError, ValueError: the data, the weights to start from or the workdir cannot be used.
        TrainingDivergedError: loss or gradient is no longer finite; the checkpoints written before are sound.
    """
    run = prepare(recipe, init_from=init_from, mesh=mesh)
    workdir = ensure_writable(workdir)
    recipe, last_step = run.recipe, run.recipe.total_epochs * run.steps_per_epoch
    result = None
    checkpoints = TrainingCheckpoints(workdir, keep=recipe.keep_checkpoints)
    first_step = resume(run, checkpoints, workdir)
    with Reporter(
        workdir, first_step=first_step, last_step=last_step, batch_size=recipe.batch_size, log_every=recipe.log_every
    ) as reporter:
        if first_step:
            reporter.say(f"continuing at step {first_step} of {last_step} in {workdir}")
        elif run.started_from is not None:
            reporter.say(str(run.started_from))
        for epoch in range(first_step // run.steps_per_epoch, recipe.total_epochs):
            train_epoch(run, epoch, reporter)
            is_last = epoch + 1 == recipe.total_epochs
            if is_last or (epoch + 1) % recipe.eval_every == 0:
                result = run.evaluate(run.state.best)
                report_accuracy(run, epoch, result, reporter)
            if is_last or (epoch + 1) % recipe.checkpoint_every == 0:
                checkpoints.save(run.state, run.iterator, run.metadata)
    return run.evaluate(run.state.best) if result is None else result


def train_epoch(run: Run, epoch: int, reporter: Reporter) -> None:
    """One epoch; every loss of it has been read, and was finite, when this returns."""
    lr = epoch_lr(run.recipe, epoch)
    start = time.perf_counter()
    for step in range(epoch * run.steps_per_epoch + 1, (epoch + 1) * run.steps_per_epoch + 1):
        run.state, metrics = run.train_step(run.state, next(run.iterator))
        reporter.step(step, metrics, lr=lr, epoch=epoch)
    loss = reporter.flush()
    seconds = time.perf_counter() - start
    images = run.steps_per_epoch * run.recipe.batch_size
    reporter.line(
        f"epoch {epoch + 1:>3}/{run.recipe.total_epochs}   loss {loss:.4f}   lr {lr:.2e}   "
        f"{images / seconds:,.0f} images/s",
        {"step": (epoch + 1) * run.steps_per_epoch, "epoch": epoch, "epoch_loss": loss, "seconds": seconds},
    )


def report_accuracy(run: Run, epoch: int, result: Accuracy, reporter: Reporter) -> None:
    """One line about the validation images."""
    reporter.line(
        f"            top-1 {result.top1:.2f} % ({result.top1_correct} of {result.images})",
        {"step": (epoch + 1) * run.steps_per_epoch, "epoch": epoch, **result._asdict()},
    )


def resume(run: Run, checkpoints: TrainingCheckpoints, workdir: Path) -> int:
    """Sets `run` to the latest checkpoint; the number of steps done (0 without one).

    Raises:
        ValueError: the checkpoint is of another recipe.
    """
    if checkpoints.latest_step is None:
        return 0
    changes = _differences(checkpoints.metadata.get("recipe", {}), run.metadata["recipe"])
    if changes:
        raise ValueError(f"{workdir} holds a run of another recipe ({changes}): choose another --workdir")
    run.state = checkpoints.restore(run.state, run.iterator)
    return checkpoints.latest_step


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    # A field that the checkpoint does not have came later: its default is what the run did without it.
    there = {**{field.name: field.default for field in dataclasses.fields(Recipe)}, **there}
    names = [name for name in here if name not in FREE_TO_CHANGE and there.get(name) != here[name]]
    return ", ".join(f"{name} {there.get(name)!r} there, {here[name]!r} here" for name in names)


# --- Command line -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command line."""

    recipe: tyro.conf.OmitArgPrefixes[Recipe]
    init_from: Path | None = None
    """Weights to start from: Orbax folder, .pth, .pth.tar, .safetensors; a head for other classes starts anew."""
    workdir: Path | None = None
    """Folder of the run; None takes workdir/RECIPE."""
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
        result = train(options.recipe, workdir, init_from=options.init_from, mesh=options.mesh)
    except TrainingDivergedError as error:
        print(f"error: {error}", file=sys.stderr)
        return cli.FAILED
    print(f"top-1 {result.top1:.2f} % ({result.top1_correct} of {result.images}), weights in {workdir}")
    return cli.OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
