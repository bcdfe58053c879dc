"""Check that a resumed run has the recipe and data it was started with, and report other changes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from t2t_common.data.fingerprint import data_changes
from t2t_common.run.save_policy import DATA, RAN_ON, saved_by
from t2t_common.workdir.folder import CHECKPOINTS, SUFFIX, Damaged, check_beginning, is_step
from t2t_common.workdir.record import Record
from t2t_config import ExpectedClasses, Recipe, recipe_changes
from t2t_config.text import few, readable

OTHER_DATA = "restore the data, or choose another --workdir"

LOST_DATA = (
    "this run was started before the identity of its data was recorded, so they are not compared: they have to be "
    "those that it was started with"
)


class Run(Protocol):
    """The parts of a run of either framework that are used to resume it."""

    recipe: Recipe
    steps_per_epoch: int
    notes: list[str]

    @property
    def metadata(self) -> dict[str, Any]: ...


class Checkpoints(Protocol):
    """The attributes of either framework's `TrainingCheckpoints` that are used to resume a run."""

    damaged: Damaged

    @property
    def latest_step(self) -> int | None: ...

    @property
    def metadata(self) -> dict[str, Any]: ...


def resume(run: Run, checkpoints: Checkpoints, workdir: Path, restore: Callable[[], int]) -> int:
    """Restore the run from its latest valid checkpoint, after checking that the checkpoint belongs to this run.

    Checkpoints set aside as damaged, changes, and properties that could not be compared are added to `run.notes`.

    Args:
        run: Run before its first step.
        checkpoints: Checkpoints in `workdir`.
        workdir: Folder of the run.
        restore: Restores the state of the run and returns the step of the checkpoint used.

    Returns:
        The number of completed steps, 0 without a checkpoint.

    Raises:
        ValueError: The checkpoint has another recipe or other data, or an expected checkpoint is missing.
    """
    there, step = checkpoints.metadata, checkpoints.latest_step  # metadata first: it drops damaged ones
    if step is None:
        check_beginning(workdir, saved_by=saved_by(run.recipe, run.steps_per_epoch))
        return 0
    last_step = run.recipe.total_epochs * run.steps_per_epoch
    check = functools.partial(check_same_run, here=run.metadata, workdir=workdir, last_step=last_step)
    check(there, step=step)  # before restoring, which would fail with a less specific error
    step = restore()
    notes = check(checkpoints.metadata, step=step)  # `restore` may have used an earlier checkpoint
    run.notes += [*checkpoints.damaged.lines, *notes]
    return step


def check_same_run(
    there: Mapping[str, Any], here: Mapping[str, Any], workdir: Path, *, step: int, last_step: int
) -> list[str]:
    """Check that the run may resume from a checkpoint; return notes on changes and on what could not be compared.

    Args:
        there: Metadata of the checkpoint.
        here: Metadata that this run would write.
        workdir: Folder of the run, for the messages.
        step: Step of the checkpoint.
        last_step: Last step of the run with the present data.

    Raises:
        ValueError: Recipe, classes or data differ; the message describes the difference.
    """
    other_data = [_class_changes(there, here), _data_changes(there, here, workdir, step, last_step)]
    old, new = there.get("recipe", {}), here["recipe"]
    if any(other_data):  # a different number of classes is then due to the data
        new = {**new, "num_classes": old.get("num_classes")}
    if changes := recipe_changes(old, new):
        raise ValueError(f"{workdir} holds a run of another recipe ({changes}): choose another --workdir")
    if any(other_data):
        changes = "; ".join(filter(None, other_data))
        raise ValueError(f"{workdir} holds a run on other data ({changes}): {OTHER_DATA}")
    lost = [] if there.get(DATA) else [LOST_DATA]
    return [*lost, *_device_changes(there.get(RAN_ON), here[RAN_ON])]


def with_saved_head(recipe: Recipe, workdir: Path) -> Recipe:
    """Return `recipe` with the head size saved in `workdir`, for older runs that took that size from the recipe."""
    record = Record.read(workdir)
    if record is None or not isinstance(recipe.num_classes, ExpectedClasses) or DATA in record.config:
        return recipe
    classes, names = record.config.get("num_classes"), (path.name for path in (workdir / CHECKPOINTS).glob("*"))
    if not classes or not any(is_step(name.removesuffix(SUFFIX)) for name in names):
        return recipe
    return dataclasses.replace(recipe, num_classes=int(classes))


def _class_changes(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Return the difference in class names, or "". Checkpoints of every version contain them."""
    theirs, ours = there.get("class_names"), here.get("class_names")
    if not isinstance(theirs, list) or theirs == ours:
        return "" if not ours or DATA not in there or theirs == ours else "the classes had no names"
    if ours is None:
        return "the classes no longer have names"
    theirs = [str(name) for name in theirs]
    gone, new = [name for name in theirs if name not in ours], [name for name in ours if name not in theirs]
    if not gone and not new:
        return f"the classes in another order: {few(theirs)} -> {few(ours)}"
    found = [f"{text} {few(names)}" for text, names in (("removed", gone), ("new", new)) if names]
    return f"classes {', '.join(found)}"


def _data_changes(there: Mapping[str, Any], here: Mapping[str, Any], workdir: Path, step: int, last_step: int) -> str:
    if there.get(DATA):
        return data_changes(there[DATA], here[DATA])
    record = Record.read(workdir)  # older runs: infer a change in the number of images from that of steps
    steps = record.last_step if record is not None and record.last_step else last_step
    if steps != last_step or step > last_step:
        return f"{max(steps, step)} steps -> {last_step}"
    return ""


# --- Processes and devices ----------------------------------------------------------------------------------


def _device_changes(there: Any, here: Mapping[str, Any]) -> list[str]:
    """Return a note if processes or devices have changed, and whether results can still be bitwise identical."""
    if not isinstance(there, dict) or not there or there == here:
        return []
    change = f"this run continues with {describe(here)}; so far it had {readable(describe(there), 200)}"
    if {**there, "processes": 0} == {**here, "processes": 0}:
        bits = "the arrays are split as before, so the results can be bitwise identical"
    else:
        bits = "sums are rounded in another order, so the results cannot be bitwise identical to those without it"
    # In JAX, which has a mesh, random numbers for a batch do not depend on which process computes its parts.
    by_process = "mesh" not in here and there.get("processes") != here["processes"]
    drawn = ", and each process draws its own dropout masks" if by_process else ""
    return [f"{change}: every image still comes once in an epoch; {bits}{drawn}"]


def describe(devices: Mapping[str, Any]) -> str:
    """Return a description of processes and devices."""
    processes, count = devices.get("processes"), devices.get("devices")
    mesh = devices.get("mesh")
    split = f" as {','.join(f'{axis}={size}' for axis, size in mesh.items())}" if isinstance(mesh, dict) else ""
    return f"{processes} process{'' if processes == 1 else 'es'}, {count} × {devices.get('kind')}{split}"
