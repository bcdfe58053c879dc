"""Where a run keeps its checkpoints, in either framework: `WORKDIR/checkpoints/STEP` is a folder of `t2t_jax.train`,
`WORKDIR/checkpoints/STEP.pth` a file of `t2t_torch.train`. And which file a folder means that is given as weights.
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
"""Begins the name of a checkpoint that could not be read and was set aside: `damaged-STEP`, `damaged-STEP.pth`."""


def is_step(name: str) -> bool:
    """Whether a checkpoint is called so: a number as `str` writes it ("007" and "\u00b2" are none)."""
    return re.fullmatch("0|[1-9][0-9]{0,17}", name) is not None


def torch_steps(folder: Path) -> list[int]:
    """The steps whose files are in `folder`, in order."""
    return sorted(int(path.stem) for path in folder.glob(f"*{SUFFIX}") if is_step(path.stem) and path.is_file())


def latest_torch_file(path: str | Path) -> Path:
    """`path` itself; if it is the folder of a run in PyTorch, the file of its latest step; if it is one that
    `save_pretrained` wrote, its weights."""
    path = Path(path)
    for folder in (path / CHECKPOINTS, path):
        if steps := torch_steps(folder):
            return folder / f"{steps[-1]}{SUFFIX}"
    return path / WEIGHTS if is_hub_folder(path) else path


def check_workdir(workdir: Path, package: Literal["t2t_jax", "t2t_torch"]) -> None:
    """Raises ValueError if `workdir` holds a run of the other package than this one."""
    folder = workdir / CHECKPOINTS
    holds = {
        "t2t_jax": any(is_step(path.name) and path.is_dir() for path in folder.glob("*")),
        "t2t_torch": bool(torch_steps(folder)),
    }
    other = "t2t_jax" if package == "t2t_torch" else "t2t_torch"
    if holds[other]:
        raise ValueError(f"{workdir} holds a run of {other}.train: choose another --workdir")


class UnfitError(ValueError):
    """A sound checkpoint that this run cannot continue from."""


class Damaged:
    """The checkpoints of a run that cannot be read: set aside, so that the run goes on from the one before.

    Attributes:
        steps: theirs, as long as they have their names.
        lines: one for each, to be shown to the user.
    """

    def __init__(self, folder: Path, suffix: str = "", *, renames: bool = True) -> None:
        """
        Args:
            folder: of the checkpoints.
            suffix: of their names, behind the step.
            renames: whether this process sets them aside; of several one does.
        """
        self._folder, self._suffix, self._renames = folder, suffix, renames
        self.steps: dict[int, str] = {}
        self.lines: list[str] = []

    def latest(self, latest_step: Callable[[], int | None], read: Callable[[int], T], otherwise: T) -> T:
        """What `read` makes of the latest checkpoint that is sound; the damaged ones after it are set aside then.

        Args:
            latest_step: the latest that is not one of `steps`; None without one.
            read: raises ValueError where the checkpoint of a step is damaged, `UnfitError` where it cannot be used.
            otherwise: the answer where there is no checkpoint at all.

        Raises:
            UnfitError: of `read`.
            ValueError: there are checkpoints, and all of them are damaged; they keep their names.
        """
        while (step := latest_step()) is not None:
            with self.noted(step):
                found = read(step)
                self._set_aside()
                return found
        if self.steps:
            step, reason = max(self.steps.items())
            raise ValueError(f"cannot read {self._path(step)}, nor one before ({reason}): choose another --workdir")
        return otherwise

    @contextlib.contextmanager
    def noted(self, step: int) -> Iterator[None]:
        """Notes that the checkpoint of `step` is damaged, if the body raises ValueError (but no `UnfitError`), or if it
        goes away meanwhile: the first of several processes may have set it aside."""
        try:
            yield
        except (ValueError, FileNotFoundError) as error:
            if isinstance(error, UnfitError) or isinstance(error.__cause__, MemoryError | PermissionError):
                raise
            reason = first_line(error).removesuffix(": get it again")
            self.steps[step] = readable(reason.replace(f"{self._path(step)} ", ""), 200)

    def _set_aside(self) -> None:
        for step, reason in sorted(self.steps.items(), reverse=True):
            path, aside = self._path(step), self._free_name(step)
            if self._renames and os.path.lexists(path):
                path.rename(aside)
                del self.steps[step]
            self.lines.append(
                f"checkpoint {path} is damaged ({reason}): set aside as {aside.name}, the run uses the one before"
            )

    def _path(self, step: int) -> Path:
        return self._folder / f"{step}{self._suffix}"

    def _free_name(self, step: int) -> Path:
        name, number = f"{DAMAGED}{step}", 1
        while os.path.lexists(self._folder / f"{name}{self._suffix}"):
            name, number = f"{DAMAGED}{step}-{number}", number + 1
        return self._folder / f"{name}{self._suffix}"


def not_recognised(workdir: Path, names: Iterable[str]) -> list[str]:
    """What lies among the checkpoints of `workdir` besides those called `names`, the best one, damaged ones that were
    set aside, and hidden files."""
    known = {*names, "best", f"best{SUFFIX}"}
    folder = workdir / CHECKPOINTS
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [name for name in found if name not in known and not name.startswith((".", DAMAGED))]


def check_beginning(workdir: Path, *, saved_by: int) -> None:
    """For a run that has found no checkpoint in `workdir`: raises ValueError if there has to be one, so that no run
    begins anew over the log of another.

    Args:
        workdir: the run's folder.
        saved_by: a run that is beyond this step has saved.
    """
    if strangers := not_recognised(workdir, ()):
        names = ", ".join(repr(name) for name in strangers[:5]) + (", ..." if len(strangers) > 5 else "")
        raise ValueError(
            f"{workdir / CHECKPOINTS} has no checkpoint, but {names}: give them their names again (the number of the "
            "step), or choose another --workdir"
        )
    log = workdir / METRICS_FILE
    if (step := last_step(log)) > saved_by:
        raise ValueError(
            f"{workdir / CHECKPOINTS} has no checkpoint, but {log} goes up to step {step}: put the checkpoints back, "
            "choose another --workdir, or move the log away to begin at step 1"
        )


def note_not_recognised(workdir: Path, names: Iterable[str]) -> str | None:
    """A line for the user about what `not_recognised` finds; None where that is nothing."""
    strangers = [repr(name) for name in not_recognised(workdir, names)]
    if not strangers:
        return None
    return f"not recognised as checkpoints, and left alone: {', '.join(strangers[:5])}" + (
        f" and {len(strangers) - 5} more" if len(strangers) > 5 else ""
    )
