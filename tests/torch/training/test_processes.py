"""Two real processes, by torchrun over loopback, make the run of one."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from t2t_common.data.fingerprint import digest_of
from t2t_common.workdir.record import Record
from t2t_config import Recipe
from t2t_torch import read_state_dict
from t2t_torch.training import processes
from t2t_torch.training.from_recipe import check_recipe
from tests.support.golden import rel_f

ROOT = Path(__file__).parents[3]
NO_DRAWS_INSIDE = (
    *("--model", "vit_deit_tiny_patch16_224", "--img-size", "32", "--drop-path-rate", "0"),
    *("--mixup", "0.8", "--cutmix", "1", "--mixup-group", "2", "--re-prob", "0.5", "--grad-accum-steps", "2"),
    *("--epochs", "1", "--cooldown-epochs", "0", "--warmup-epochs", "0", "--batch-size", "8", "--lr", "5e-4"),
    *("--clip-grad", "1", "--log-every", "1", "--ema-decay", "0.9"),
)
"""ViT has no dropout but what is asked for; draws outside the model belong to the whole batch."""


def run(workdir: Path, idx_folder: Path, *, processes: int) -> subprocess.CompletedProcess[str]:
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"] if processes > 1 else []
    command = [sys.executable, "-m", *launcher, "t2t_torch.train", "digits", "--data", str(idx_folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, "--workdir", str(workdir), *NO_DRAWS_INSIDE],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


def lines(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_make_the_run_of_one(idx_folder: Path, tmp_path: Path):
    one, two = tmp_path / "one", tmp_path / "two"
    for workdir, count in ((one, 1), (two, 2)):
        done = run(workdir, idx_folder, processes=count)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(f"weights in {workdir}") == 1
    runs = [Record.read(workdir) for workdir in (one, two)]
    assert [run is not None and run.status for run in runs] == ["finished"] * 2
    assert runs[0].confusion == runs[1].confusion
    assert runs[1].starts[0].devices == "2 × cpu"
    ours, theirs = lines(one), lines(two)
    assert len(ours) == len(theirs) == 8 + 2
    for mine, other in zip(ours, theirs, strict=True):
        for name in {"loss", "grad_norm", "epoch_loss", "lr", "step", "images", "top1_correct"} & mine.keys():
            assert other[name] == pytest.approx(mine[name], rel=1e-6), (mine["step"], name)
    for use_ema in (True, False):
        mine, other = (read_state_dict(workdir, use_ema=use_ema) for workdir in (one, two))
        joined = [np.concatenate([x.numpy().ravel() for x in weights.values()]) for weights in (mine, other)]
        assert rel_f(joined[1], joined[0]) < 1e-6


def test_all_stop_after_the_step_in_which_one_was_asked(monkeypatch: pytest.MonkeyPatch):
    asked = iter([0, 1])
    monkeypatch.setattr(processes, "process_count", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda value, how: value.fill_(next(asked)))
    with processes.Interruption() as interruption:
        assert [interruption.requested(step) for step in (1, 2)] == [None, "another process"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RuntimeError(
                "[/third_party/gloo/pair.cc:553] Connection closed by peer [127.0.0.1]:18327. This is typical"
            ),
            r"process of this run has died \(Connection closed by peer \[127.0.0.1\]:18327\): start all of them",
        ),
        (dist.DistBackendError("NCCL communicator was aborted"), r"has died \(NCCL communicator was aborted\)"),
        (RuntimeError("shapes do not match"), "^shapes do not match$"),
    ],
)
def test_a_lost_process_is_told_of(error: RuntimeError, said: str, monkeypatch: pytest.MonkeyPatch):
    """With real processes: tests/tools/reliability/test_faults.py."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "init_process_group", lambda backend: None)
    with pytest.raises((ValueError, RuntimeError), match=said) as raised, processes.joined_processes():
        raise error
    assert isinstance(raised.value, ValueError) == ("died" in said)


def test_processes_with_other_data_are_refused(monkeypatch: pytest.MonkeyPatch):
    def gather(digests: list[Any], own: bytes) -> None:
        digests[:] = [digest_of({"train": 1}), own]

    assert processes.check_same_data({"train": 2}) == {"train": 2}
    monkeypatch.setattr(processes, "process_count", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", gather)
    assert processes.check_same_data({"train": 1}) == {"train": 1}
    with pytest.raises(ValueError, match="the data of process 1 are not those of process 0: give all the same --data"):
        processes.check_same_data({"train": 2})


def test_recipes_that_processes_cannot_share_are_refused():
    recipe = Recipe("t2t_vit_micro", batch_size=24, grad_accum_steps=2, mixup=0.8)
    check_recipe(recipe, 1)
    check_recipe(dataclasses.replace(recipe, mixup=0.0), 4)
    with pytest.raises(ValueError, match="batch_size 24 does not divide among 5 processes in 2 micro-batches: choose"):
        check_recipe(recipe, 5)
    with pytest.raises(ValueError, match=r"mixup_group 24 does not divide the 6 images of each process.*group 6, or"):
        check_recipe(recipe, 4)
    check_recipe(dataclasses.replace(recipe, mixup_group=6), 4)
