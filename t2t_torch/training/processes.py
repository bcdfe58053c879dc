"""Several processes that train together, as torchrun starts them; each on a device of its own."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from t2t_common.data.fingerprint import check_alike, digest_of
from t2t_common.workdir import interrupt


def own_device() -> torch.device:
    """This process's device: its GPU, if there are any, else the CPU."""
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else torch.device("cpu")
    )


@contextlib.contextmanager
def joined_processes() -> Iterator[None]:
    """While open, this process is one of a run's, if torchrun started it (gloo on the CPU, nccl between GPUs).

    Raises:
        ValueError: another process is gone, or did not answer in time (torch's half an hour; NCCL's ten minutes).
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    if own_device().type == "cuda":
        torch.cuda.set_device(own_device())
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if own_device().type == "cuda" else "gloo")
        yield
    except RuntimeError as error:  # from wherever processes meet: a gradient, a loss, a count
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        reason = re.sub(r"^\[\S*\] ", "", str(error)).partition(". ")[0]  # not where in gloo, nor its good wishes
        raise ValueError(
            f"another process of this run is gone ({reason}): start all of them again, and the run continues"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def process_index() -> int:
    """Which process of the run this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def process_count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def mean_of_processes(value: Tensor) -> Tensor:
    """The mean of every process's `value`, which is changed in place."""
    if process_count() > 1:
        dist.all_reduce(value)
        value /= process_count()
    return value


def sum_processes(counts: np.ndarray) -> np.ndarray:
    """The sum of every process's `counts`."""
    if process_count() == 1:
        return counts
    total = torch.from_numpy(counts.copy())
    dist.all_reduce(total)
    return total.numpy()


def checked_data(identity: dict[str, Any]) -> dict[str, Any]:
    """`identity`, of the data that this process has.

    Raises:
        ValueError: another process has other data.
    """
    if process_count() > 1:
        digests: list[Any] = [None] * process_count()
        dist.all_gather_object(digests, digest_of(identity))
        check_alike(digests)
    return identity


class Interruption(interrupt.Interruption):
    """As its base; of several processes, all stop after the same step, whichever got the signal."""

    def requested(self, step: int) -> str | None:
        own = super().requested(step)
        if process_count() == 1:
            return own
        asked = torch.tensor(own is not None, dtype=torch.int32)
        dist.all_reduce(asked, dist.ReduceOp.MAX)
        return (own or "another process") if asked else None
