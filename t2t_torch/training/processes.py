"""Distributed training in several processes started by torchrun, each on its own device."""

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
    """Return this process's device: its GPU if CUDA is available, else the CPU."""
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else torch.device("cpu")
    )


@contextlib.contextmanager
def joined_processes() -> Iterator[None]:
    """Join the process group while open, if torchrun started this process (gloo on the CPU, nccl between GPUs).

    Raises:
        ValueError: Another process has died or timed out (torch: 30 minutes; NCCL: 10 minutes).
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    if own_device().type == "cuda":
        torch.cuda.set_device(own_device())
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if own_device().type == "cuda" else "gloo")
        yield
    except RuntimeError as error:  # from any collective: of gradients, losses or counts
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        reason = re.sub(r"^\[\S*\] ", "", str(error)).partition(". ")[0]  # without gloo's source location and advice
        raise ValueError(
            f"another process of this run has died ({reason}): start all of them again to resume the run"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def process_index() -> int:
    """Return the index of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def process_count() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def mean_of_processes(value: Tensor) -> Tensor:
    """Return the mean of `value` over all processes; `value` is changed in place."""
    if process_count() > 1:
        dist.all_reduce(value)
        value /= process_count()
    return value


def sum_processes(counts: np.ndarray) -> np.ndarray:
    """Return the sum of `counts` over all processes."""
    if process_count() == 1:
        return counts
    total = torch.from_numpy(counts.copy())
    dist.all_reduce(total)
    return total.numpy()


def check_same_data(identity: dict[str, Any]) -> dict[str, Any]:
    """Return `identity`, the fingerprint of this process's data, after checking that all processes have the same.

    Raises:
        ValueError: Another process has different data.
    """
    if process_count() > 1:
        digests: list[Any] = [None] * process_count()
        dist.all_gather_object(digests, digest_of(identity))
        check_alike(digests)
    return identity


class Interruption(interrupt.Interruption):
    """Interruption that stops all processes after the same step, whichever process received the signal."""

    def requested(self, step: int) -> str | None:
        own = super().requested(step)
        if process_count() == 1:
            return own
        asked = torch.tensor(own is not None, dtype=torch.int32)
        dist.all_reduce(asked, dist.ReduceOp.MAX)
        return (own or "another process") if asked else None
