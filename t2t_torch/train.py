"""python -m t2t_torch.train RECIPE [--data DIR] [--init-from CHECKPOINT] [--workdir DIR] [any field]
torchrun --nproc-per-node N -m t2t_torch.train RECIPE ...

Trains a model in PyTorch with the recipes of t2t_jax.train, on the same images in the same order and with the same
random augmentation. The workdir holds checkpoints/, metrics.jsonl and report.html. Running the same command again
resumes from the last checkpoint, bit for bit as if the run had not stopped. On SIGTERM or Ctrl-C, the run saves after
the current step and exits with code 0.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import tyro

from t2t_common.data import classes_with_images, data_identity
from t2t_common.data.classes import for_run
from t2t_common.data.iterator import Batch
from t2t_common.evaluation.accuracy import Accuracy
from t2t_common.io import cli
from t2t_common.run import loop
from t2t_common.run.loop import Backend, Run
from t2t_common.run.open_data import open_data
from t2t_common.run.options import LoggingOptions
from t2t_common.run.peak_flops import run_peak
from t2t_common.run.reporter import Reporter
from t2t_common.run.train_command import run_command
from t2t_common.workdir.folder import SUFFIX, torch_steps
from t2t_config import Recipe
from t2t_torch.data import eval_batches, train_iterator
from t2t_torch.evaluate import accuracy
from t2t_torch.training.checkpoints import TrainingCheckpoints
from t2t_torch.training.from_recipe import build_model, build_sample, build_step, check_recipe, compute_dtype
from t2t_torch.training.init_from import saved_classes, start_from
from t2t_torch.training.optim import freeze
from t2t_torch.training.processes import (
    Interruption,
    check_same_data,
    joined_processes,
    own_device,
    process_count,
    process_index,
)
from t2t_torch.training.step import make_forward


def prepare(
    recipe: Recipe,
    *,
    init_from: str | Path | None = None,
    fresh_head: bool = False,
    class_names: Sequence[str] | None = None,
) -> Run:
    """Open the data, build model and optimizer, and initialize the training state.

    Args:
        recipe: Recipe to train.
        init_from: Checkpoint with the initial weights.
        fresh_head: Whether to ignore its classifier.
        class_names: Class names in the order of a resumed run; None uses the order of the weights or of the data.

    Raises:
        FileNotFoundError, ValueError: The data or the initial weights cannot be used; the message gives the reason.
    """
    # --- Device and data ------------------------------------------------------------------------------------
    device = own_device()
    check_recipe(recipe, process_count())
    processes = {"process_index": process_index(), "process_count": process_count()}
    data = open_data(recipe, from_weights=init_from is not None)
    recipe, preprocess = data.recipe, data.preprocess
    check_recipe(recipe, process_count())

    def put(batch: Batch) -> Batch:
        moved = {name: array.to(device, non_blocking=True) for name, array in batch.items()}
        return {**moved, "image": moved["image"].permute(0, 3, 1, 2).contiguous()}

    # --- Model ----------------------------------------------------------------------------------------------
    model = build_model(recipe)
    started_from, head = None, None
    if init_from is not None:
        started_from, head = start_from(model, init_from, fresh_head=fresh_head)
        started_from.check_finite()
    identity = check_same_data(data_identity(data.train, data.val))
    train_source, val_source, notes = for_run(data.train, data.val, data.num_classes, begun=class_names, head=head)
    freeze(model, recipe.frozen or ())
    model.to(device)

    # --- Optimizer, state, step -----------------------------------------------------------------------------
    state, train_step = build_step(recipe, model, steps_per_epoch=data.steps_per_epoch)
    forward = make_forward(model, dtype=compute_dtype(recipe.dtype))
    reading: dict[str, Any] = {
        "threads": recipe.data_threads,
        "workers": recipe.data_workers,
        "timeout": recipe.data_timeout,
    }
    return Run(
        recipe=recipe,
        preprocess=preprocess,
        class_names=train_source.class_names,
        classes=classes_with_images(train_source, val_source),
        data=identity,
        ran_on={"processes": process_count(), "devices": process_count(), "kind": device_kind()},
        steps_per_epoch=data.steps_per_epoch,
        iterator=train_iterator(train_source, recipe, preprocess, put=put, **processes),
        state=state,
        train_step=lambda state, batch: (state, train_step(state, batch)),
        sample=build_sample(recipe),
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
    logging: LoggingOptions | None = None,
) -> Accuracy:
    """Train `recipe` in `workdir`, or resume the run in it, and return the final accuracy.

    Args: See `prepare`; `logging` holds the logging options.

    Raises:
        FileNotFoundError, ValueError: The data, the initial weights or the workdir cannot be used.
        TrainingDivergedError: Loss or gradient is no longer finite; earlier checkpoints are intact.
        RunInterruptedError: The run was asked to stop (see `Interruption`) and is saved; the same call resumes it.
    """
    logging = logging or LoggingOptions()
    backend = Backend(
        package="t2t_torch",
        is_main_process=process_index() == 0,
        prepare=functools.partial(prepare, init_from=init_from, fresh_head=fresh_head),
        saved_classes=saved_classes,
        interruption=Interruption,
        open_checkpoints=TrainingCheckpoints,
        checkpoint_names=lambda folder: (f"{step}{SUFFIX}" for step in torch_steps(folder)),
        make_reporter=functools.partial(
            Reporter,
            logging=logging,
            peak_flops=run_peak(device_kind(), process_count(), logging.peak_tflops),
            devices=f"{process_count()} × {device_kind()}",
            is_main_process=process_index() == 0,
        ),
    )
    return loop.train(recipe, workdir, backend)


def device_kind() -> str:
    """Return the name of this process's device."""
    return torch.cuda.get_device_name(own_device()) if own_device().type == "cuda" else "cpu"


# --- Command line -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Options:
    """Command line options."""

    recipe: tyro.conf.OmitArgPrefixes[Recipe]
    init_from: Path | None = None
    """Initial weights: .pth, .pth.tar, .safetensors, or a run's folder. A head for other classes is reinitialized."""
    fresh_head: bool = False
    """Train a new classifier, even if the initial weights have one that fits."""
    workdir: Path | None = None
    """Folder of the run; None uses workdir/RECIPE_torch."""
    logging: tyro.conf.OmitArgPrefixes[LoggingOptions] = dataclasses.field(default_factory=LoggingOptions)


@contextlib.contextmanager
def joined(options: Options) -> Iterator[bool]:
    """Join the run's process group; yield True in the first process, which prints."""
    with joined_processes():
        yield process_index() == 0


def main(args: Sequence[str]) -> int:
    """Run the command and return its exit code."""

    def run(options: Options, workdir: Path) -> Accuracy:
        return train(
            options.recipe,
            workdir,
            init_from=options.init_from,
            fresh_head=options.fresh_head,
            logging=options.logging,
        )

    return run_command(
        args, "t2t_torch", __doc__ or "", options_type=Options, workdir_suffix="_torch", processes=joined, train=run
    )


if __name__ == "__main__":
    cli.run_and_end(main)
