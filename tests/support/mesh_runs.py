"""Runs of one recipe on several meshes, in a process with eight virtual devices or in one of two processes.

python -m tests.support.mesh_runs '{"devices": N, "data": DIR, "meshes": {NAME: MESH}}' prints facts as JSON; the mesh
called "scanned" trains with stacked blocks; "changes" may hold other fields of the recipe.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import jax
import numpy as np

from t2t_common.evaluation.evaluate_command import new_confusion
from t2t_config import Recipe
from t2t_jax import train as training
from t2t_jax.aot.hlo import carry_batch, collectives
from t2t_jax.parallel.mesh import join_processes, own_shapes, shard_shapes
from t2t_jax.training import from_recipe, step

STEPS = 20


def facts(mesh: str, data: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Losses, parts of the arrays, messages and counts of 20 steps on `mesh`."""
    recipe = Recipe(
        model="t2t_vit_micro",
        data=data,
        img_size=32,
        mean=(0.4, 0.4, 0.4),
        std=(0.2, 0.2, 0.2),
        batch_size=16,
        epochs=STEPS,
        warmup_epochs=1,
        cooldown_epochs=0,
        ema_decay=0.8,
        mixup=0.8,
        cutmix=1.0,
        mixup_group=2,
        re_prob=0.25,
        data_threads=0,
    )
    recipe = dataclasses.replace(recipe, **changes)
    steps: list[Any] = []
    make = step.make_train_step
    from_recipe.make_train_step = lambda *args, **options: steps.append(make(*args, **options)) or steps[0]
    run = training.prepare(recipe, mesh=mesh)
    parts = shard_shapes(run.state.params)
    moments = shard_shapes(run.state.opt_state[0].mu)
    batches = [next(run.iterator) for _ in range(STEPS)]
    program = steps[0].lower(run.state, batches[0]).compile().as_text()
    losses = []
    for batch in batches:
        run.state, metrics = run.train_step(run.state, batch)
        losses.append(float(metrics["loss"]))
    whole = {name: array.shape for name, array in run.state.params.items()}
    messages = collectives(program)
    confusion = new_confusion(4)
    return {
        "losses": losses,
        "parts": parts,
        "moments": moments,
        "later": shard_shapes(run.state.params),
        "whole": whole,
        "accuracy": run.evaluate(run.state.best, confusion),
        "confusion": confusion.tolist(),
        "sample": float(np.abs(run.sample(run.state, batches[0])["image"]).sum()),
        "compilations": steps[0]._cache_size(),
        "messages": len(messages),
        "carrying": [str(message) for message in carry_batch(messages, recipe.batch_size, own_shapes(run.state.raw))],
    }


def main(order: dict[str, Any]) -> None:
    jax.config.update("jax_num_cpu_devices", order["devices"])
    if "distributed" in order:
        join_processes(order["distributed"])
    changes = order.get("changes", {})
    found = {
        name: facts(mesh, order["data"], {**changes, "scan_blocks": name == "scanned"})
        for name, mesh in order["meshes"].items()
    }
    if jax.process_index() == 0:
        print(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
