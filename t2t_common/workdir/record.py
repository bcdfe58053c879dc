"""`run.json` in a workdir: what is run, where, since when, how it ended; a few images; what classes are taken for."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from t2t_common.io.files import write_text
from t2t_config.weights.json_limits import parse

RECORD_FILE = "run.json"

MOST, MOST_CLASSES = 10**12, 10**5
"""Steps or images, and classes, of no run that ever was: a file with more is damaged."""

OF_EVALUATIONS = ("strangers", "chance")
"""Keys of the warnings that an evaluation gives."""

Status = Literal["running", "finished", "stopped", "diverged", "failed"]

PACKAGES = ("t2t-vit", "jax", "jaxlib", "flax", "optax", "torch", "numpy", "pillow")


@dataclasses.dataclass
class Start:
    """One process of the run, or several that train together: it began after `step`. Times are ISO 8601."""

    step: int
    began: str
    until: str
    command: str
    devices: str


@dataclasses.dataclass
class Record:
    """Everything that is not in `metrics.jsonl`.

    Attributes:
        message: why the run ended, where it did not end by itself.
        last_step: of the whole run.
        batch_size: of all processes together.
        config: as in a checkpoint's metadata (see saving.py): the recipe, names of classes, mean and std.
        samples: images of one batch (see samples.py), and its step.
        confusion: of the latest evaluation (see confusion.py), and its step.
        warnings: that hold, by key (see t2t_common/run/warnings.py).
    """

    status: Status = "running"
    message: str = ""
    last_step: int = 0
    batch_size: int = 0
    starts: list[Start] = dataclasses.field(default_factory=list)
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    samples: dict[str, Any] | None = None
    confusion: dict[str, Any] | None = None
    warnings: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, workdir: Path) -> Record | None:
        """What `workdir` holds; None where there is no such file, as in workdirs of old, or one that makes no sense: no
        run is to fail for it."""
        path = workdir / RECORD_FILE
        if not path.is_file():
            return None
        known = {field.name for field in dataclasses.fields(cls)}
        try:
            found = parse(path.read_text(encoding="utf-8"))
            record = cls(**{name: value for name, value in found.items() if name in known})
            record.starts = [Start(**start) for start in found.get("starts", [])]
        except (ValueError, TypeError, AttributeError, RecursionError):
            return None
        return record if record._makes_sense() else None

    def _makes_sense(self) -> bool:
        """Whether all that a run needs of it is what it should be."""
        parts = [self.environment, self.config, self.samples or {}, self.confusion or {}]
        if not all(isinstance(part, dict) for part in parts) or not isinstance(self.recipe, dict):
            return False
        if not isinstance(self.warnings, dict):
            return False
        texts: list[Any] = [self.status, self.message, *self.environment.values(), *self.warnings.values()]
        seen = self.confusion or {"step": 0, "classes": 0}
        numbers: list[Any] = [self.last_step, self.batch_size, seen.get("step")]
        for start in self.starts:
            texts += [start.began, start.until, start.command, start.devices]
            numbers.append(start.step)
        classes: list[Any] = [seen.get("classes"), self.config.get("num_classes") or 0]
        whole = all(type(number) is int and 0 <= number <= MOST for number in (*numbers, *classes))
        return whole and max(classes) <= MOST_CLASSES and all(isinstance(text, str) for text in texts)

    def save(self, workdir: Path) -> None:
        """Raises ValueError if it cannot be written; an older file stays."""
        write_text(workdir / RECORD_FILE, json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    def begin(self, step: int, devices: str) -> Start | None:
        """A process takes the run up after `step`, and what was seen of later steps is forgotten; None where there is
        nothing left to train."""
        self.status, self.message = "running", ""
        self.environment = environment()
        if self.confusion is not None and self.confusion["step"] > step:
            self.confusion = None
            self.warn(dict.fromkeys(OF_EVALUATIONS))
        if step == self.last_step:
            return None
        self.starts.append(Start(step, now(), now(), command(), devices))
        return self.starts[-1]

    def warn(self, warnings: Mapping[str, str | None]) -> None:
        """Takes warnings by key; None ends one."""
        for key, text in warnings.items():
            if text is None:
                self.warnings.pop(key, None)
            else:
                self.warnings[key] = text

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Fields of the recipe; empty where they are not known."""
        return self.config.get("recipe", {})

    @property
    def seconds(self) -> float:
        """That processes have spent on the run; one whose clock was turned back counts for nothing."""
        spans = (datetime.fromisoformat(start.until) - datetime.fromisoformat(start.began) for start in self.starts)
        return sum(max(0.0, span.total_seconds()) for span in spans)


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def command() -> str:
    """What this process was started with."""
    program, *rest = sys.orig_argv
    return shlex.join([Path(program).name, *rest])


def environment() -> dict[str, str]:
    """What the run depends on besides its recipe."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        **versions,
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": str(os.cpu_count()),
    }
