"""Weights that a run starts from, and what the outputs of their classifier stand for.

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
    """Fills `model` from `path` to train it further; what was loaded, and the classes that its classifier came with.

    These are None where the classifier starts anew: for another number of classes, or where that is asked for; and
    empty where the weights do not name them.

    Raises:
        FileNotFoundError, ValueError: as `init_weights`.
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


def begun_classes(workdir: str | Path) -> list[str] | None:
    """Names of the classes of the run in `workdir`, by its latest readable checkpoint; None where that has none."""
    folder = Path(workdir) / CHECKPOINTS
    steps = checkpoint_steps(folder) if folder.is_dir() else []
    for path in [folder / str(step) for step in reversed(steps)] or [Path(workdir)]:
        with contextlib.suppress(ValueError, OSError):
            names = load_metadata(path).get("class_names")
            return list(map(str, names)) if names and isinstance(names, list) else None
    return None
