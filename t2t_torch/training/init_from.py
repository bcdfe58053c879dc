"""Initial weights of a run, and the class names of their classifier.

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
    """Load `path` into `model` for fine-tuning; return the load report and the class names of the loaded classifier.

    The class names are None if the classifier is reinitialized (for another number of classes, or with `fresh_head`),
    and empty if the weights do not include them.

    Raises:
        FileNotFoundError, ValueError: See `load_checkpoint`.
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


def saved_classes(workdir: str | Path) -> list[str] | None:
    """Return the class names in the latest readable checkpoint of the run in `workdir`; None if it has none."""
    folder = Path(workdir) / CHECKPOINTS
    steps = torch_steps(folder)
    for path in [folder / f"{step}{SUFFIX}" for step in reversed(steps)] or [latest_torch_file(workdir)]:
        with contextlib.suppress(ValueError, OSError):
            names = from_text(read_checkpoint(path).metadata).get("class_names")
            return list(map(str, names)) if names and isinstance(names, list) else None
    return None
