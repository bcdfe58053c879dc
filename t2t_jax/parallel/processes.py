"""Several processes that train together: one that loses another ends, and says so.

Twin: t2t_torch/training/processes.py.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from t2t_common.data.fingerprint import check_alike, digest_of
from t2t_config.text import reason

SIGNS = re.compile(r"gloo|nccl|coordination|heartbeat|unhealthy", re.IGNORECASE)
"""In what JAX, XLA or Orbax say when another process does not answer; they have no type for it."""


class LostProcessError(ValueError):
    """Another process of this run is gone."""


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


def checked_data(identity: dict[str, Any]) -> dict[str, Any]:
    """`identity`, of the data that this process has.

    Raises:
        ValueError: another process has other data.
    """
    if jax.process_count() > 1:
        digests = multihost_utils.process_allgather(np.frombuffer(digest_of(identity), np.uint8))
        check_alike([digest.tobytes() for digest in np.asarray(digests)])
    return identity


def ran_on(mesh: Mesh) -> dict[str, Any]:
    """Number of processes and devices of a run, their kind and what they share; JSON values."""
    kind = mesh.devices.flat[0].device_kind
    return {"processes": jax.process_count(), "devices": mesh.size, "kind": kind, "mesh": dict(mesh.shape)}
