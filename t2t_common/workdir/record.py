"""`run.json` in a workdir: configuration, environment, start times and status; sample images; confusion matrix."""

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
"""Upper limits for steps or images, and for classes; a file that exceeds them is considered damaged."""

OF_EVALUATIONS = ("strangers", "chance", "never")
"""Keys of the warnings raised by evaluations."""

Status = Literal["running", "finished", "stopped", "diverged", "failed"]

PACKAGES = ("t2t-vit", "jax", "jaxlib", "flax", "optax", "torch", "numpy", "pillow")


@dataclasses.dataclass
class Start:
    """A start of the run, by one or several processes, after `step` completed steps. Times are in ISO 8601 format."""

    step: int
    began: str
    until: str
    command: str
    devices: str


@dataclasses.dataclass
class Record:
    """Everything about a run that is not in `metrics.jsonl`.

    Attributes:
        message: Why the run ended, if it did not finish.
        last_step: Total number of steps of the run.
        batch_size: Global batch size, over all processes.
        config: Metadata as in a checkpoint (see t2t_common/run/save_policy.py): recipe, class names, mean and std.
        samples: Images of one batch (see t2t_common/run_page/samples.py), and its step.
        confusion: Confusion matrix of the latest evaluation (see t2t_common/run_page/confusion.py), and its step.
        warnings: Active warnings by key (see t2t_common/run/warnings.py).
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
        """Read the record in `workdir`; return None if the file is missing, as in older workdirs, or invalid.

        An invalid record must not make a run fail.
        """
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
        """Return whether all values that a run uses have valid types and ranges."""
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
        """Write the record. Raise ValueError if this fails; an existing file is then kept."""
        write_text(workdir / RECORD_FILE, json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    def begin(self, step: int, devices: str) -> Start | None:
        """Record that a process starts or resumes the run after `step`, and drop evaluation results of later steps.

        Return None if there is nothing left to train.
        """
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
        """Update the warnings by key; None removes one."""
        for key, text in warnings.items():
            if text is None:
                self.warnings.pop(key, None)
            else:
                self.warnings[key] = text

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Fields of the recipe; empty if unknown."""
        return self.config.get("recipe", {})

    @property
    def seconds(self) -> float:
        """Total time of all starts in seconds; a negative duration, from a clock that was set back, counts as zero."""
        spans = (datetime.fromisoformat(start.until) - datetime.fromisoformat(start.began) for start in self.starts)
        return sum(max(0.0, span.total_seconds()) for span in spans)


def now() -> str:
    """Return the current UTC time in ISO 8601 format, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def command() -> str:
    """Return the command line of this process."""
    program, *rest = sys.orig_argv
    return shlex.join([Path(program).name, *rest])


def environment() -> dict[str, str]:
    """Return package versions, operating system and number of CPUs."""
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
