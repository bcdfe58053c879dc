"""Where the figures of a run go: `metrics.jsonl` always, TensorBoard and Weights & Biases when asked."""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from t2t_common.io.terminal import unescaped_streams
from t2t_common.workdir.lock import LostWorkdirError
from t2t_common.workdir.metrics_file import METRICS_FILE, continue_lines, encode_line, read_lines

__all__ = ["METRICS_FILE", "JsonLines", "TensorBoard", "Wandb", "Writer", "open_writers", "read_lines", "require"]

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
    workdir: Path,
    services: Sequence[Service],
    *,
    first_step: int,
    config: Mapping[str, Any],
    say: Callable[[str], None] = print,
) -> list[Writer]:
    """The writers of a run that continues after `first_step` (0: begins); `config` is what is run, `say` takes what a
    user should know of the files that they go on with."""
    writers: list[Writer] = [JsonLines(workdir / METRICS_FILE, first_step=first_step, say=say)]
    if "tensorboard" in services:
        writers.append(TensorBoard(workdir, first_step=first_step))
    if "wandb" in services:
        writers.append(Wandb(workdir, config=config))
    return writers


class JsonLines:
    """One JSON object per line. A continued run drops the lines after its checkpoint and writes them again."""

    def __init__(self, path: Path, *, first_step: int, say: Callable[[str], None] = print) -> None:
        """
        Args:
            path: of the file.
            first_step: the last step whose lines stay.
            say: takes a line about what was damaged in the file, and is kept aside.

        Raises:
            ValueError: the file cannot be written; it stays as it is.
        """
        for text in continue_lines(path, first_step):
            say(text)
        self._path = path
        with _writing(path):
            self._file = path.open("a+b", buffering=0)  # so that closing it has nothing left to write, and to fail with
        self._is_known_again = self._is_there()  # not on every network's file system

    def write(self, values: Mapping[str, Any]) -> None:
        """Raises ValueError if it cannot be written; a run that continues drops a line that is cut off.

        Raises LostWorkdirError if the file was deleted, or another is in its place.
        """
        self._check_place()
        line = encode_line(values)
        with _writing(self._path):
            while line:
                line = line[self._file.write(line) :]

    def close(self, error: BaseException | None) -> None:
        """Raises LostWorkdirError if the file was deleted, or another is in its place; not after another `error`."""
        try:
            if error is None:
                self._check_place()
        finally:
            self._file.close()

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self._path.lstat())
        except OSError:
            return False

    def _check_place(self) -> None:
        exists = os.path.lexists(self._path)
        if self._is_there() if self._is_known_again else exists:
            return
        if exists:
            raise LostWorkdirError(
                f"{self._path} was replaced by another file while the run wrote it: this run ends here, and another "
                "may be using its workdir"
            )
        if not self._path.parent.is_dir():
            raise LostWorkdirError(
                f"{self._path.parent} was deleted while the run went on: nothing more can be written there; start "
                "again, with another --workdir if need be"
            )
        raise LostWorkdirError(
            f"{self._path} was deleted while the run wrote it, and {self._put_back()}: the same command continues the "
            "run from its last checkpoint"
        )

    def _put_back(self) -> str:
        """Writes the deleted file anew, from what is open; how it went."""
        try:
            self._file.seek(0)
            with self._path.open("xb") as file:
                file.write(self._file.read())
        except OSError as error:
            return f"could not be put back ({error.strerror or error})"
        return "put back"


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


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"cannot write {path} ({reason}): free space, the same command continues the run") from error
