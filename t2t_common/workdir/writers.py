"""Writers for the metrics of a run: always `metrics.jsonl`, and on request TensorBoard and Weights & Biases."""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from t2t_common.io.files import same_file
from t2t_common.io.terminal import unescaped_streams
from t2t_common.workdir.lock import LostWorkdirError
from t2t_common.workdir.metrics_file import METRICS_FILE, continue_lines, encode_line, read_lines

__all__ = ["METRICS_FILE", "JsonLines", "TensorBoard", "Wandb", "Writer", "open_writers", "read_lines", "require"]

Service = Literal["tensorboard", "wandb"]
PACKAGES: Mapping[Service, str] = {"tensorboard": "tensorboardX", "wandb": "wandb"}


class Writer(Protocol):
    def write(self, values: Mapping[str, Any]) -> None:
        """Write the metrics of one step; `values` includes "step"."""

    def close(self, error: BaseException | None) -> None:
        """Close the writer; `error` is the exception that ended the run, None if it finished."""


def require(service: Service) -> Any:
    """Import and return the package for `service`.

    Raises:
        ValueError: The package is not installed.
    """
    package = PACKAGES[service]
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(f"--log {service} needs {package} ({error}): pip install {package}") from None


def open_writers(
    workdir: Path,
    services: Sequence[Service],
    *,
    first_step: int,
    config: Mapping[str, Any],
    say: Callable[[str], None] = print,
) -> list[Writer]:
    """Open the writers of a run that resumes after `first_step` (0 for a new run).

    `config` is the configuration of the run; `say` receives messages for the user about existing files.
    """
    writers: list[Writer] = [JsonLines(workdir / METRICS_FILE, first_step=first_step, say=say)]
    if "tensorboard" in services:
        writers.append(TensorBoard(workdir, first_step=first_step))
    if "wandb" in services:
        writers.append(Wandb(workdir, config=config))
    return writers


class JsonLines:
    """Write one JSON object per line. A resumed run removes the lines after its checkpoint and writes them again."""

    def __init__(self, path: Path, *, first_step: int, say: Callable[[str], None] = print) -> None:
        """
        Args:
            path: File to write.
            first_step: Last step whose lines are kept.
            say: Receives a message about damaged lines that were moved to another file.

        Raises:
            ValueError: The file cannot be written; it is unchanged.
        """
        for text in continue_lines(path, first_step):
            say(text)
        self._path = path
        with _writing(path):
            self._file = path.open("a+b", buffering=0)  # unbuffered, so that close() cannot fail on a pending write
        self._is_known_again = same_file(self._file, self._path)  # false on some network file systems

    def write(self, values: Mapping[str, Any]) -> None:
        """Write one line. A truncated line is removed when the run resumes.

        Raises:
            ValueError: The line cannot be written.
            LostWorkdirError: The file was deleted or replaced.
        """
        self._check_place()
        line = encode_line(values)
        with _writing(self._path):
            while line:
                line = line[self._file.write(line) :]

    def close(self, error: BaseException | None) -> None:
        """Close the file. Without an `error`, raise LostWorkdirError if the file was deleted or replaced."""
        try:
            if error is None:
                self._check_place()
        finally:
            self._file.close()

    def _check_place(self) -> None:
        exists = os.path.lexists(self._path)
        if same_file(self._file, self._path) if self._is_known_again else exists:
            return
        if exists:
            raise LostWorkdirError(
                f"{self._path} was replaced by another file while the run wrote it: this run ends here, and another "
                "may be using its workdir"
            )
        if not self._path.parent.is_dir():
            raise LostWorkdirError(
                f"{self._path.parent} was deleted during the run: nothing more can be written there; start "
                "again, if necessary with another --workdir"
            )
        raise LostWorkdirError(
            f"{self._path} was deleted while the run wrote it, and {self._put_back()}: the same command continues the "
            "run from its last checkpoint"
        )

    def _put_back(self) -> str:
        """Restore the deleted file from the open handle and return the outcome as text."""
        try:
            self._file.seek(0)
            with self._path.open("xb") as file:
                file.write(self._file.read())
        except OSError as error:
            return f"could not be put back ({error.strerror or error})"
        return "put back"


class TensorBoard:
    """Write scalars to `workdir/tensorboard`; view them with `tensorboard --logdir WORKDIR`."""

    def __init__(self, workdir: Path, *, first_step: int) -> None:
        SummaryWriter = require("tensorboard").SummaryWriter
        # Hide events that an interrupted run wrote after its last checkpoint.
        self._writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1 if first_step else None)

    def write(self, values: Mapping[str, Any]) -> None:
        for name, value in _figures(values).items():
            self._writer.add_scalar(name, value, values["step"])
        self._writer.flush()

    def close(self, error: BaseException | None) -> None:
        self._writer.close()


class Wandb:
    """Log to a Weights & Biases run named after the workdir; a resumed run continues it (`workdir/wandb_id`)."""

    def __init__(self, workdir: Path, *, config: Mapping[str, Any]) -> None:
        path = workdir / "wandb_id"
        if not path.exists():
            path.write_text(secrets.token_hex(8))
        with unescaped_streams():  # wandb prints in colours
            self._run = require("wandb").init(
                project="t2t-vit",
                name=workdir.name,
                id=path.read_text(),
                resume="allow",
                dir=str(workdir),
                config=dict(config),
            )
        # wandb's own step cannot decrease, but the step of a run does when it resumes from a checkpoint.
        self._run.define_metric("*", step_metric="step")

    def write(self, values: Mapping[str, Any]) -> None:
        self._run.log({"step": values["step"], **_figures(values)})

    def close(self, error: BaseException | None) -> None:
        with unescaped_streams():
            self._run.finish(exit_code=0 if error is None else 1)


def _figures(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in values.items() if isinstance(value, int | float) and name != "step"}


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"cannot write {path} ({reason}): free space, the same command continues the run") from error
