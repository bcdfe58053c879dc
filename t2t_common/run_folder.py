"""Where a run keeps its checkpoints, in either framework: `WORKDIR/checkpoints/STEP` is a folder of `t2t_jax.train`,
`WORKDIR/checkpoints/STEP.pth` a file of `t2t_torch.train`. And which file a folder means that is given as weights.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

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
