"""Weights that a run starts from, and what the outputs of their classifier stand for.

Twin: t2t_jax/training/init_from.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from t2t_common.weights.adapt import CLASSIFIERS
from t2t_common.workdir.folder import CHECKPOINTS, SUFFIX, latest_torch_file, torch_steps
from t2t_config.weights.load_report import LoadReport
from t2t_config.weights.metadata import from_text
from t2t_torch.checkpoint import load_checkpoint, read_checkpoint


def start_from(model: Any, path: str | Path, *, fresh_head: bool = False) -> tuple[LoadReport, list[str] | None]:
    """Fills `model` from `path` to train it further; what was loaded, and the classes that its classifier came with.

    These are None where the classifier starts anew: for another number of classes, or where that is asked for; and
    empty where the weights do not name them.

    Raises:
        FileNotFoundError, ValueError: as `load_checkpoint`.
    """
    own = {key: value.clone() for key, value in model.state_dict().items() if key.split(".")[0] in CLASSIFIERS}
    report = load_checkpoint(model, path)
    if fresh_head:
        model.load_state_dict(own, strict=False)
        loaded = tuple(name for name in report.loaded if name not in own)
        report = dataclasses.replace(report, loaded=loaded, missing=tuple(own))
    if any(name.split(".")[0] == "head" for name in report.missing):
        return report, None
    names = from_text(read_checkpoint(path).metadata).get("class_names")
    return report, list(map(str, names)) if isinstance(names, list) else []


def begun_classes(workdir: str | Path) -> list[str] | None:
    """Names of the classes of the run in `workdir`, by its latest readable checkpoint; None where that has none."""
    folder = Path(workdir) / CHECKPOINTS
    steps = torch_steps(folder)
    for path in [folder / f"{step}{SUFFIX}" for step in reversed(steps)] or [latest_torch_file(workdir)]:
        with contextlib.suppress(ValueError, OSError):
            names = from_text(read_checkpoint(path).metadata).get("class_names")
            return list(map(str, names)) if names and isinstance(names, list) else None
    return None
