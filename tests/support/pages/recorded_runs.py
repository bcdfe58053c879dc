"""Runs to make pages of: lines as the reporter writes them, and what was recorded besides."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from t2t_common.run_page.confusion import sparse
from t2t_common.run_page.samples import encode
from t2t_common.workdir.record import Record, Start
from t2t_config import Recipe

EPOCHS, STEPS_PER_EPOCH, LOG_EVERY = 8, 20, 5
STEPS = EPOCHS * STEPS_PER_EPOCH
CONFUSION = np.array([[9, 1, 0], [4, 5, 1], [0, 0, 10]])


def lines(steps: int = STEPS, *, mfu: bool = False) -> list[dict[str, Any]]:
    """Of metrics.jsonl, after so many steps."""
    found: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        epoch = (step - 1) // STEPS_PER_EPOCH
        loss = 2 / step**0.5 + 0.1 * np.sin(step)
        if step % LOG_EVERY == 0:
            rates = {"images_per_second": 1500.0 + step, "data_wait": 0.02 + 0.01 * np.cos(step)}
            shares = {"mfu": 0.31} if mfu else {}
            norm = 3.0 + np.cos(step)
            values = {"loss": loss, "grad_norm": norm, "lr": 1e-3 / (1 + epoch), "epoch": epoch, **rates, **shares}
            found.append({"step": step, **values})
        if step % STEPS_PER_EPOCH == 0:
            found.append({"step": step, "epoch": epoch, "epoch_loss": loss, "seconds": 2.5})
            top1 = 90 - 60 / (epoch + 1)
            found.append({"step": step, "epoch": epoch, "images": 30, "top1": top1, "top5": top1 + 8})
    return found


def record(classes: int = 3, *, step: int = STEPS, **changes: Any) -> Record:
    """Of a finished run on colour images; `changes` of its fields."""
    draws = np.random.RandomState(0)
    recipe = Recipe("t2t_vit_micro", data="/data/birds", epochs=EPOCHS, cooldown_epochs=0, batch_size=8, mixup=0.8)
    names = ["wren", "robin <b>", "house sparrow, Passer domesticus"]
    config: dict[str, Any] = {"model": recipe.model, "num_classes": classes, "recipe": dataclasses.asdict(recipe)}
    config |= {"mean": [0.5] * 3, "std": [0.25] * 3} | ({"class_names": names} if classes == 3 else {})
    targets = np.zeros((4, classes))
    targets[np.arange(4), np.arange(4) % 3] = 1.0
    targets[3, :2] = 0.7, 0.3
    images = encode(draws.standard_normal((4, 64, 64, 3)), targets, mean=config["mean"], std=config["std"])
    matrix = CONFUSION if classes == 3 else np.diag([50] * classes) + draws.poisson(3 / classes, (classes, classes))
    begun = "2026-01-02T03:04:05+00:00"
    found = Record(
        status="finished",
        last_step=STEPS,
        batch_size=8,
        starts=[Start(0, begun, "2026-01-02T03:05:10+00:00", "python -m t2t_jax.train birds", "4 × TPU v5e")],
        environment={"python": "3.11.7", "jax": "0.10.2", "cpus": "8"},
        config=json.loads(json.dumps(config)),
        samples={"step": 1, "images": images},
        confusion={"step": step, "classes": classes, "counts": sparse(matrix)},
    )
    return dataclasses.replace(found, **changes)


def resumed() -> Record:
    """A run that two processes have made."""
    again = Start(70, "2026-01-02T09:00:00+00:00", "2026-01-02T10:30:00+00:00", "python -m t2t_jax.train birds", "")
    return record(starts=[*record().starts, again])


def written(workdir: Path, of: Record | None, found: list[dict[str, Any]]) -> Path:
    """A workdir that holds both files."""
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))
    if of is not None:
        of.save(workdir)
    return workdir
