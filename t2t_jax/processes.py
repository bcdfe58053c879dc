"""Several processes that train together: one that loses another ends, and says so. Twin: t2t_torch/processes.py."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence

import jax

from t2t_common import cli
from t2t_jax.checkpoint import reason
from t2t_jax.mesh import join_processes

SIGNS = re.compile(r"gloo|nccl|coordination|heartbeat|unhealthy", re.IGNORECASE)
"""In what JAX, XLA or Orbax say when another process does not answer; they have no type for it."""


class LostProcessError(ValueError):
    """Another process of this run is gone."""


@contextlib.contextmanager
def joined_processes(text: str | None) -> Iterator[None]:
    """While open, this process is one of a run's, if there are others; `text` as `join_processes` has it.

    Of several, one that fails ends at once, by its one line or its traceback: in good order it would wait for the
    others, for minutes. They notice: by `LostProcessError`, or, if it was the first, JAX itself ends them.
    """
    join_processes(text)
    try:
        with told_of_loss():
            yield
    except BaseException as error:
        if jax.process_count() > 1:
            _end_by(error)
        raise


@contextlib.contextmanager
def told_of_loss() -> Iterator[None]:
    """Makes of whatever tells that another process is gone a `LostProcessError`."""
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1 or isinstance(error, LostProcessError) or not _tells_of_loss(error):
            raise
        raise LostProcessError(
            f"another process of this run is gone ({reason(error)}): start all of them again, and the run continues"
        ) from error


def _tells_of_loss(error: BaseException) -> bool:
    while not SIGNS.search(str(error)):
        if error.__cause__ is None:
            return False
        error = error.__cause__
    return True


def _end_by(error: BaseException) -> None:
    def fail(args: Sequence[str]) -> int:
        raise error

    try:
        code = cli.run(fail, [])
    except BaseException:
        traceback.print_exc()
        code = cli.FAILED
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
