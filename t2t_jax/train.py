"""python -m t2t_jax.train RECIPE [--data DIR] [--init-from CHECKPOINT] [--workdir DIR] [any field]

Trains a model. The workdir holds checkpoints/, metrics.jsonl and report.html. Running the same command again resumes
from the last checkpoint, bit for bit as if the run had not stopped. On SIGTERM or Ctrl-C, the run saves after the
current step and exits with code 0.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import tyro

from t2t_common.data import classes_with_images, data_identity
from t2t_common.data.classes import for_run
from t2t_common.evaluation.accuracy import Accuracy
from t2t_common.io import cli
from t2t_common.run import loop
from t2t_common.run.loop import Backend, Run
from t2t_common.run.open_data import open_data
from t2t_common.run.train_command import run_command
from t2t_config import Recipe
from t2t_jax.checkpoint import checkpoint_steps
from t2t_jax.data import eval_batches, train_iterator
from t2t_jax.evaluate import accuracy, forward_on
from t2t_jax.parallel.interrupt import Interruption
from t2t_jax.parallel.mesh import join_processes, make_mesh, put_batch, put_tree
from t2t_jax.parallel.processes import check_same_data, detect_lost_process, ran_on
from t2t_jax.state import split_model
from t2t_jax.training.checkpoints import TrainingCheckpoints
from t2t_jax.training.divergence import explain
from t2t_jax.training.from_recipe import build_model, build_sample, build_step, check_recipe
from t2t_jax.training.init_from import saved_classes, start_from
from t2t_jax.training.optim import freeze
from t2t_jax.training.profile import LoggingOptions
from t2t_jax.training.reporter import Reporter, TrainingDivergedError
from t2t_jax.training.step import init_state
from t2t_jax.weights.orbax_messages import quiet_orbax


def prepare(
    recipe: Recipe,
    *,
    init_from: str | Path | None = None,
    fresh_head: bool = False,
    mesh: str | None = None,
    class_names: Sequence[str] | None = None,
) -> Run:
    """Open the data, build model and optimizer, and initialize the training state.

    Args:
        recipe: Recipe to train.
        init_from: Checkpoint with the initial weights.
        fresh_head: Whether to ignore its classifier.
        mesh: Mesh axis sizes, such as "data=4,fsdp=2"; None uses all devices for data parallelism.
        class_names: Class names in the order of a resumed run; None uses the order of the weights or of the data.

    Raises:
        FileNotFoundError, ValueError: The data or the initial weights cannot be used; the message gives the reason.
    """
    # --- Devices and data -----------------------------------------------------------------------------------
    devices = make_mesh(mesh)
    check_recipe(recipe, devices)
    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    data = open_data(recipe, from_weights=init_from is not None)
    recipe, preprocess = data.recipe, data.preprocess
    check_recipe(recipe, devices)

    # --- Model ----------------------------------------------------------------------------------------------
    model = build_model(recipe)
    started_from, head = None, None
    if init_from is not None:
        started_from, head = start_from(model, init_from, fresh_head=fresh_head)
        started_from.check_finite()
    identity = check_same_data(data_identity(data.train, data.val))
    train_source, val_source, notes = for_run(data.train, data.val, data.num_classes, begun=class_names, head=head)
    forward = forward_on(devices, split_model(model)[0])
    model.train()
    graphdef, params, buffers = split_model(model)
    params, buffers = freeze(params, buffers, recipe.frozen or ())

    # --- Optimizer, state, step -----------------------------------------------------------------------------
    reading: dict[str, Any] = {"threads": recipe.data_threads, "timeout": recipe.data_timeout}
    build = functools.partial(
        build_step,
        recipe,
        graphdef,
        params,
        model.no_weight_decay(),
        steps_per_epoch=data.steps_per_epoch,
        mesh=devices,
    )
    tx, train_step = build()
    state = init_state(params, buffers, tx, seed=recipe.seed, average=recipe.ema_decay is not None)
    return Run(
        recipe=recipe,
        preprocess=preprocess,
        class_names=train_source.class_names,
        classes=classes_with_images(train_source, val_source),
        data=identity,
        ran_on=ran_on(devices),
        steps_per_epoch=data.steps_per_epoch,
        iterator=train_iterator(
            train_source, recipe, preprocess, put=functools.partial(put_batch, mesh=devices), **processes
        ),
        state=put_tree(state, devices),
        train_step=train_step,
        inspectable_step=lambda inspect_gradients: build(inspect_gradients=inspect_gradients)[1],
        sample=build_sample(recipe, mesh=devices),
        evaluate=lambda arrays, confusion=None: accuracy(
            forward,
            arrays,
            eval_batches(val_source, preprocess, recipe.batch_size, **reading, **processes),
            confusion=confusion,
        ),
        started_from=started_from,
        notes=[*notes, *data.notes],
    )


def train(
    recipe: Recipe,
    workdir: str | Path,
    *,
    init_from: str | Path | None = None,
    fresh_head: bool = False,
    mesh: str | None = None,
    logging: LoggingOptions | None = None,
) -> Accuracy:
    """Train `recipe` in `workdir`, or resume the run in it, and return the final accuracy.

    Args: See `prepare`; `logging` holds the logging options.

    Raises:
        FileNotFoundError, ValueError: The data, the initial weights or the workdir cannot be used.
        TrainingDivergedError: Loss or gradient is no longer finite; the message names the first module that was not.
            Earlier checkpoints are intact.
        RunInterruptedError: The run was asked to stop (see `Interruption`) and is saved; the same call resumes it.
    """
    backend = Backend(
        package="t2t_jax",
        is_main_process=jax.process_index() == 0,
        prepare=functools.partial(prepare, init_from=init_from, fresh_head=fresh_head, mesh=mesh),
        saved_classes=saved_classes,
        interruption=Interruption,
        open_checkpoints=TrainingCheckpoints,
        checkpoint_names=lambda folder: map(str, checkpoint_steps(folder)),
        make_reporter=functools.partial(Reporter, logging=logging),
        around=explained,
    )
    return loop.train(recipe, workdir, backend)


@contextlib.contextmanager
def explained(begin: Callable[..., Run], checkpoints: TrainingCheckpoints, workdir: Path) -> Iterator[None]:
    """Add the first non-finite module to a `TrainingDivergedError` by rerunning from the last checkpoint (see
    `t2t_jax.training.divergence`), and report if another process has died.
    """
    try:
        with detect_lost_process():
            yield
    except TrainingDivergedError as error:
        try:
            checkpoints.wait()
            run = begin(checkpoints.metadata.get("class_names"))
            done = loop.resume(run, checkpoints, workdir)
            finding = explain(
                run.train_step, run.inspectable_step, run.state, run.iterator, done=done, broken=error.step
            )
        except Exception as failure:  # still report the divergence
            finding = f"the first non-finite module could not be determined ({failure})"
        raise TrainingDivergedError(f"{error}; {finding}", error.step) from error


# --- Command line -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Options:
    """Command line options."""

    recipe: tyro.conf.OmitArgPrefixes[Recipe]
    init_from: Path | None = None
    """Initial weights: Orbax folder, .pth, .pth.tar, .safetensors, or the folder of a run in either framework. A head
    for other classes is reinitialized."""
    fresh_head: bool = False
    """Train a new classifier, even if the initial weights have one that fits."""
    workdir: Path | None = None
    """Folder of the run; None uses workdir/RECIPE."""
    logging: tyro.conf.OmitArgPrefixes[LoggingOptions] = dataclasses.field(default_factory=LoggingOptions)
    mesh: str | None = None
    """Mesh axis sizes for data and FSDP parallelism, such as data=4,fsdp=2; None uses all devices for data
    parallelism."""
    distributed: str | None = None
    """Processes on several machines: HOST:PORT,COUNT,INDEX, or auto, or off; None joins them if the cluster's
    environment (TPU pod, Slurm, Open MPI) lists several."""


@contextlib.contextmanager
def joined(options: Options) -> Iterator[bool]:
    """Join the run's processes; yield True in all of them, as all print."""
    join_processes(options.distributed)
    with quiet_orbax(), detect_lost_process():
        yield True


def main(args: Sequence[str]) -> int:
    """Run the command and return its exit code."""

    def run(options: Options, workdir: Path) -> Accuracy:
        return train(
            options.recipe,
            workdir,
            init_from=options.init_from,
            fresh_head=options.fresh_head,
            mesh=options.mesh,
            logging=options.logging,
        )

    return run_command(
        args, "t2t_jax", __doc__ or "", options_type=Options, workdir_suffix="", processes=joined, train=run
    )


if __name__ == "__main__":
    cli.run_and_end(main)
