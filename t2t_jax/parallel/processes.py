"""Training with several processes: detection of a lost process, checks across processes.

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
"""Words in the errors of JAX, XLA or Orbax if another process does not respond; there is no error type for it."""


class LostProcessError(ValueError):
    """Another process of this run has died."""


@contextlib.contextmanager
def detect_lost_process() -> Iterator[None]:
    """Raise `LostProcessError` if another process has died."""
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1 or isinstance(error, LostProcessError) or not _is_process_loss(error):
            raise
        raise LostProcessError(
            f"another process of this run has died ({reason(error)}): start all of them again to resume the run"
        ) from error


def _is_process_loss(error: BaseException) -> bool:
    while not SIGNS.search(str(error)):
        if error.__cause__ is None:
            return False
        error = error.__cause__
    return True


def check_same_data(identity: dict[str, Any]) -> dict[str, Any]:
    """Return `identity`, the identity of this process's data, if it is the same in all processes.

    Raises:
        ValueError: If another process has different data.
    """
    if jax.process_count() > 1:
        digests = multihost_utils.process_allgather(np.frombuffer(digest_of(identity), np.uint8))
        check_alike([digest.tobytes() for digest in np.asarray(digests)])
    return identity


def ran_on(mesh: Mesh) -> dict[str, Any]:
    """Return the number of processes and devices of a run, the device kind and the mesh shape, as JSON values."""
    kind = mesh.devices.flat[0].device_kind
    return {"processes": jax.process_count(), "devices": mesh.size, "kind": kind, "mesh": dict(mesh.shape)}
