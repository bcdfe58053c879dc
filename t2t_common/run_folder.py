"""Where a run keeps its checkpoints, in either framework: `WORKDIR/checkpoints/STEP` is a folder of `t2t_jax.train`,
`WORKDIR/checkpoints/STEP.pth` a file of `t2t_torch.train`. And which file a folder means that is given as weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from t2t_common.metrics_file import METRICS_FILE, last_step
from t2t_config.hub import WEIGHTS, is_hub_folder

CHECKPOINTS, SUFFIX = "checkpoints", ".pth"


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


def not_recognised(workdir: Path, names: Iterable[str]) -> list[str]:
    """What lies among the checkpoints of `workdir` besides those called `names`, the best one and hidden files."""
    known = {*names, "best", f"best{SUFFIX}"}
    folder = workdir / CHECKPOINTS
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [name for name in found if name not in known and not name.startswith(".")]


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
