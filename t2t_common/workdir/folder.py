"""Checkpoint layout of a workdir, and lookup of the weights file in a folder.

`t2t_jax.train` writes folders `WORKDIR/checkpoints/STEP`, `t2t_torch.train` files `WORKDIR/checkpoints/STEP.pth`.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, TypeVar

from t2t_common.workdir.metrics_file import METRICS_FILE, last_step
from t2t_config.text import first_line, readable
from t2t_config.weights.hub import WEIGHTS, is_hub_folder

T = TypeVar("T")

CHECKPOINTS, SUFFIX = "checkpoints", ".pth"
DAMAGED = "damaged-"
"""Prefix for renaming checkpoints that cannot be read: `damaged-STEP`, `damaged-STEP.pth`."""


def is_step(name: str) -> bool:
    """Return whether `name` is a step number as formatted by `str` ("007" and "\u00b2" are not)."""
    return re.fullmatch("0|[1-9][0-9]{0,17}", name) is not None


def torch_steps(folder: Path) -> list[int]:
    """Return the sorted steps of the PyTorch checkpoints in `folder`."""
    return sorted(int(path.stem) for path in folder.glob(f"*{SUFFIX}") if is_step(path.stem) and path.is_file())


def latest_torch_file(path: str | Path) -> Path:
    """Return the weights file for `path`.

    This is the latest checkpoint for the folder of a PyTorch run, the weights file for a folder written by
    `save_pretrained`, and otherwise `path` itself.
    """
    path = Path(path)
    for folder in (path / CHECKPOINTS, path):
        if steps := torch_steps(folder):
            return folder / f"{steps[-1]}{SUFFIX}"
    return path / WEIGHTS if is_hub_folder(path) else path


def check_workdir(workdir: Path, package: Literal["t2t_jax", "t2t_torch"]) -> None:
    """Raise ValueError if `workdir` holds a run of the other package."""
    folder = workdir / CHECKPOINTS
    holds = {
        "t2t_jax": any(is_step(path.name) and path.is_dir() for path in folder.glob("*")),
        "t2t_torch": bool(torch_steps(folder)),
    }
    other = "t2t_jax" if package == "t2t_torch" else "t2t_torch"
    if holds[other]:
        raise ValueError(f"{workdir} holds a run of {other}.train: choose another --workdir")


class UnfitError(ValueError):
    """Raised for a valid checkpoint that this run cannot resume from."""


class Damaged:
    """Handle unreadable checkpoints: rename them, so that the run resumes from the previous one.

    Attributes:
        steps: Step -> reason, for damaged checkpoints that have not been renamed.
        lines: Messages for the user, one per damaged checkpoint.
    """

    def __init__(self, folder: Path, suffix: str = "", *, renames: bool = True) -> None:
        """
        Args:
            folder: Folder of the checkpoints.
            suffix: File name suffix after the step.
            renames: Whether this process renames damaged checkpoints; with several processes, only one does.
        """
        self._folder, self._suffix, self._renames = folder, suffix, renames
        self.steps: dict[int, str] = {}
        self.lines: list[str] = []

    def latest(self, latest_step: Callable[[], int | None], read: Callable[[int], T], otherwise: T) -> T:
        """Return `read(step)` for the latest valid checkpoint, and rename the damaged ones after it.

        Args:
            latest_step: Returns the latest step that is not in `steps`, or None.
            read: Reads the checkpoint of a step; raises ValueError if it is damaged, `UnfitError` if it is unusable.
            otherwise: Return value if there is no checkpoint.

        Raises:
            UnfitError: Raised by `read`.
            ValueError: All checkpoints are damaged; none is renamed.
        """
        while (step := latest_step()) is not None:
            with self.noted(step):
                found = read(step)
                self._set_aside()
                return found
        if self.steps:
            step, reason = max(self.steps.items())
            raise ValueError(f"cannot read {self._path(step)}, or any before it ({reason}): choose another --workdir")
        return otherwise

    @contextlib.contextmanager
    def noted(self, step: int) -> Iterator[None]:
        """Context manager that records the checkpoint of `step` as damaged if the body raises ValueError (except
        `UnfitError`) or the checkpoint disappears, since the first of several processes may have renamed it."""
        try:
            yield
        except (ValueError, FileNotFoundError) as error:
            if isinstance(error, UnfitError) or isinstance(error.__cause__, MemoryError | PermissionError):
                raise
            reason = first_line(error).removesuffix(": get another copy")
            self.steps[step] = readable(reason.replace(f"{self._path(step)} ", ""), 200)

    def _set_aside(self) -> None:
        for step, reason in sorted(self.steps.items(), reverse=True):
            path, aside = self._path(step), self._free_name(step)
            if self._renames and os.path.lexists(path):
                path.rename(aside)
                del self.steps[step]
            self.lines.append(
                f"checkpoint {path} is damaged ({reason}): renamed to {aside.name}, the run uses the previous one"
            )

    def _path(self, step: int) -> Path:
        return self._folder / f"{step}{self._suffix}"

    def _free_name(self, step: int) -> Path:
        name, number = f"{DAMAGED}{step}", 1
        while os.path.lexists(self._folder / f"{name}{self._suffix}"):
            name, number = f"{DAMAGED}{step}-{number}", number + 1
        return self._folder / f"{name}{self._suffix}"


def not_recognised(workdir: Path, names: Iterable[str]) -> list[str]:
    """Return the unrecognized entries in the checkpoint folder of `workdir`: all except `names`, the best checkpoint,
    renamed damaged checkpoints, and hidden files."""
    known = {*names, "best", f"best{SUFFIX}"}
    folder = workdir / CHECKPOINTS
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [name for name in found if name not in known and not name.startswith((".", DAMAGED))]


def check_beginning(workdir: Path, *, saved_by: int) -> None:
    """Raise ValueError if `workdir`, in which no checkpoint was found, must have had one.

    This prevents a run from starting at step 1 over the log of another.

    Args:
        workdir: Folder of the run.
        saved_by: Every run past this step has a complete checkpoint.
    """
    if strangers := not_recognised(workdir, ()):
        names = ", ".join(repr(name) for name in strangers[:5]) + (", ..." if len(strangers) > 5 else "")
        raise ValueError(
            f"{workdir / CHECKPOINTS} has no checkpoint, but {names}: restore their names (the number of the "
            "step), or choose another --workdir"
        )
    log = workdir / METRICS_FILE
    if (step := last_step(log)) > saved_by:
        raise ValueError(
            f"{workdir / CHECKPOINTS} has no checkpoint, but {log} goes up to step {step}: put the checkpoints back, "
            "choose another --workdir, or move the log away to start at step 1"
        )


def note_not_recognised(workdir: Path, names: Iterable[str]) -> str | None:
    """Return a note for the user about the result of `not_recognised`; None if it is empty."""
    strangers = [repr(name) for name in not_recognised(workdir, names)]
    if not strangers:
        return None
    return f"not recognised as checkpoints, and ignored: {', '.join(strangers[:5])}" + (
        f" and {len(strangers) - 5} more" if len(strangers) > 5 else ""
    )
