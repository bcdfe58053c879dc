"""Initial weights of a run, and the class names of their classifier.

Twin: t2t_torch/training/init_from.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from t2t_common.weights.adapt import CLASSIFIERS
from t2t_common.workdir.folder import CHECKPOINTS
from t2t_config.weights.load_report import LoadReport
from t2t_jax.checkpoint import checkpoint_steps, init_weights, load_metadata
from t2t_jax.state import load_arrays, model_arrays


def start_from(model: Any, path: str | Path, *, fresh_head: bool = False) -> tuple[LoadReport, list[str] | None]:
    """Load `path` into `model` for fine-tuning; return the load report and the class names of the loaded classifier.

    The class names are None if the classifier is reinitialized (for another number of classes, or with `fresh_head`),
    and empty if the weights do not include them.

    Raises:
        FileNotFoundError, ValueError: See `init_weights`.
    """
    own = {key: value for key, value in model_arrays(model).items() if key.split(".")[0] in CLASSIFIERS}
    report = init_weights(model, path)
    if fresh_head:
        load_arrays(model, own, fresh=tuple(name for name in model_arrays(model) if name not in own))
        loaded = tuple(name for name in report.loaded if name not in own)
        report = dataclasses.replace(report, loaded=loaded, missing=tuple(own))
    if any(name.split(".")[0] == "head" for name in report.missing):
        return report, None
    names = load_metadata(path).get("class_names")
    return report, list(map(str, names)) if isinstance(names, list) else []


def saved_classes(workdir: str | Path) -> list[str] | None:
    """Return the class names in the latest readable checkpoint of the run in `workdir`; None if it has none."""
    folder = Path(workdir) / CHECKPOINTS
    steps = checkpoint_steps(folder) if folder.is_dir() else []
    for path in [folder / str(step) for step in reversed(steps)] or [Path(workdir)]:
        with contextlib.suppress(ValueError, OSError):
            names = load_metadata(path).get("class_names")
            return list(map(str, names)) if names and isinstance(names, list) else None
    return None
