"""Where the figures of a run go: `metrics.jsonl` always, TensorBoard and Weights & Biases when asked."""

from __future__ import annotations

import contextlib
import importlib
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from t2t_common.files import write_text
from t2t_common.terminal import unescaped_streams
from t2t_config.bounded_json import parse

METRICS_FILE = "metrics.jsonl"

Service = Literal["tensorboard", "wandb"]
PACKAGES: Mapping[Service, str] = {"tensorboard": "tensorboardX", "wandb": "wandb"}


class Writer(Protocol):
    def write(self, values: Mapping[str, Any]) -> None:
        """Takes the figures of one moment; "step" is among them."""

    def close(self, error: BaseException | None) -> None:
        """The run is over; `error` ended it, or nothing did but its last step."""


def require(service: Service) -> Any:
    """The package that writes for `service`.

    Raises:
        ValueError: it is not installed.
    """
    package = PACKAGES[service]
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(f"--log {service} needs {package} ({error}): pip install {package}") from None


def open_writers(
    workdir: Path, services: Sequence[Service], *, first_step: int, config: Mapping[str, Any]
) -> list[Writer]:
    """The writers of a run that continues after `first_step` (0: begins); `config` is what is run."""
    writers: list[Writer] = [JsonLines(workdir / METRICS_FILE, first_step=first_step)]
    if "tensorboard" in services:
        writers.append(TensorBoard(workdir, first_step=first_step))
    if "wandb" in services:
        writers.append(Wandb(workdir, config=config))
    return writers


class JsonLines:
    """One JSON object per line. A continued run drops the lines after its checkpoint and writes them again."""

    def __init__(self, path: Path, *, first_step: int) -> None:
        """Raises ValueError if the file cannot be written; it stays as it is."""
        _forget_after(path, first_step)
        self._path = path
        with _writing(path):
            self._file = path.open("ab", buffering=0)  # so that closing it has nothing left to write, and to fail with

    def write(self, values: Mapping[str, Any]) -> None:
        """Raises ValueError if it cannot be written; a run that continues drops a line that is cut off."""
        line = (json.dumps(values) + "\n").encode()
        with _writing(self._path):
            while line:
                line = line[self._file.write(line) :]

    def close(self, error: BaseException | None) -> None:
        self._file.close()


class TensorBoard:
    """Scalars in `workdir/tensorboard`: `tensorboard --logdir WORKDIR`."""

    def __init__(self, workdir: Path, *, first_step: int) -> None:
        SummaryWriter = require("tensorboard").SummaryWriter
        # What an interrupted run wrote beyond its checkpoint is hidden.
        self._writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1 if first_step else None)

    def write(self, values: Mapping[str, Any]) -> None:
        for name, value in _figures(values).items():
            self._writer.add_scalar(name, value, values["step"])
        self._writer.flush()

    def close(self, error: BaseException | None) -> None:
        self._writer.close()


class Wandb:
    """A run of Weights & Biases, named like the workdir; a continued run goes on in it (`workdir/wandb_id`)."""

    def __init__(self, workdir: Path, *, config: Mapping[str, Any]) -> None:
        path = workdir / "wandb_id"
        if not path.exists():
            path.write_text(secrets.token_hex(8))
        with unescaped_streams():  # it prints in colours
            self._run = require("wandb").init(
                project="t2t-vit",
                name=workdir.name,
                id=path.read_text(),
                resume="allow",
                dir=str(workdir),
                config=dict(config),
            )
        # wandb's own step never goes back, as it does when a run continues from a checkpoint.
        self._run.define_metric("*", step_metric="step")

    def write(self, values: Mapping[str, Any]) -> None:
        self._run.log({"step": values["step"], **_figures(values)})

    def close(self, error: BaseException | None) -> None:
        with unescaped_streams():
            self._run.finish(exit_code=0 if error is None else 1)


def _figures(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in values.items() if isinstance(value, int | float) and name != "step"}


def _forget_after(path: Path, step: int) -> None:
    """Drops lines after `step`, which a resumed run will write again, and a last line cut off by a crash."""
    if not path.exists() and not path.is_symlink():  # a link that leads nowhere is not followed
        return
    kept = [json.dumps(values) + "\n" for values in read_lines(path) if values["step"] <= step]
    write_text(path, "".join(kept))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, up to one that a crash cut off, or that makes no sense; none without a file.

    Raises:
        OSError: it cannot be read.
    """
    found: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            values = parse(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(values, dict) or type(values.get("step")) is not int:
            break
        found.append(values)
    return found


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"cannot write {path} ({reason}): free space, the same command continues the run") from error
