"""Readers of folders of Orbax, of the checkpoints of runs in both frameworks, and of exported models."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from t2t_common.data.iterator import BatchIterator
from t2t_config.weights.metadata import describe_model
from t2t_jax.checkpoint import load_metadata, load_weights, save_model
from t2t_jax.data.iterator import TrainIterator
from t2t_jax.export import load_exported
from t2t_jax.state import split_model
from t2t_jax.training import checkpoints as jax_runs
from t2t_jax.training.step import init_state
from t2t_torch.training import checkpoints as torch_runs
from t2t_torch.training.optim import Ema
from t2t_torch.training.step import TrainState
from tools.reliability.fuzzing.formats import damaged_pickle, damaged_zip
from tools.reliability.fuzzing.mutate import Tree, damaged_json, damaged_tree
from tools.reliability.fuzzing.reader import Reader
from tools.reliability.fuzzing.weights import by_suffix, jax_model, made, without_digests

# --- Orbax --------------------------------------------------------------------------------------------------


def orbax_model() -> Reader:
    """A model folder: its weights, and what it says of itself."""

    def samples() -> Sequence[Tree]:
        tree = made(lambda folder: save_model(folder / "model", jax_model(), describe_model(jax_model())))
        return [tree, without_digests(tree)]

    def read(folder: Path) -> object:
        load_metadata(folder / "model")
        return load_weights(jax_model(), folder / "model")

    return Reader(samples, _orbax_change, read, seconds=60, megabytes=512)


def _orbax_change(tree: Tree, rng: Random) -> Tree:
    """Mostly the files of JSON: the rest has checksums."""
    texts = [name for name, content in tree.items() if isinstance(content, bytes) and content.lstrip()[:1] == b"{"]
    if texts and rng.random() < 0.6:
        name = rng.choice(texts)
        content = tree[name]
        assert isinstance(content, bytes)
        return {**tree, name: damaged_json(content, rng)}
    return damaged_tree(tree, rng)


def train_state() -> tuple[Any, Any]:
    """State and iterator of a small run in JAX."""

    class Nothing:
        def account(self, indices: np.ndarray) -> None:
            pass

    _, params, _ = split_model(jax_model())
    few = {name: params[name] for name in list(params)[:3]}
    state = init_state(few, {}, optax.sgd(0.1, momentum=0.9), seed=0, average=True)
    return jax.tree.map(jnp.asarray, state), TrainIterator(lambda position: iter(()), Nothing())  # type: ignore[arg-type]


def training_jax() -> Reader:
    """The checkpoints of a run, as a run that continues reads them."""

    def samples() -> Sequence[Tree]:
        def write(folder: Path) -> None:
            state, iterator = train_state()
            with jax_runs.TrainingCheckpoints(folder / "run", keep=2, keep_best=True) as checkpoints:
                checkpoints.save(state, iterator, {"model": "t2t_vit_micro", "top1": 50.0})

        tree = made(write)
        tree = {name: content for name, content in tree.items() if "/best/" not in name}
        return [tree, without_digests(tree)]

    def read(folder: Path) -> object:
        state, iterator = train_state()
        with jax_runs.TrainingCheckpoints(folder / "run", keep=2, keep_best=True) as checkpoints:
            if checkpoints.latest_step is None:
                return None
            assert isinstance(checkpoints.metadata, dict)
            return checkpoints.restore(state, iterator)

    return Reader(samples, _orbax_change, read, writes=("run*",), seconds=60, megabytes=512)


def torch_state() -> tuple[Any, Any]:
    """State and iterator of a small run in PyTorch."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    return TrainState(model, optimizer, scheduler, Ema(model, 0.9)), BatchIterator(lambda position: iter(()), None)  # type: ignore[arg-type]


def training_torch() -> Reader:
    """The same in PyTorch."""

    def samples() -> Sequence[Tree]:
        def write(folder: Path) -> None:
            state, iterator = torch_state()
            with torch_runs.TrainingCheckpoints(folder / "run", keep=2, keep_best=True) as checkpoints:
                checkpoints.save(state, iterator, {"model": "t2t_vit_micro", "top1": 50.0})
                (folder / "run/checkpoints/best.pth").unlink()

        tree = made(write)
        return [tree, without_digests(tree)]

    def change(tree: Tree, rng: Random) -> Tree:
        if rng.random() < 0.1:
            (name,) = tree
            other = rng.choice(("\u00b2.pth", "00.pth", "\u0663.pth", "9" * 200 + ".pth"))
            return {name.replace("0.pth", other): tree[name]}
        return damaged_tree(tree, rng, damaged_zip(damaged_pickle))

    def read(folder: Path) -> object:
        state, iterator = torch_state()
        with torch_runs.TrainingCheckpoints(folder / "run", keep=2, keep_best=True) as checkpoints:
            if checkpoints.latest_step is not None:
                assert isinstance(checkpoints.metadata, dict)
                checkpoints.restore(state, iterator)
        return None

    return Reader(samples, change, read, writes=("run*",))


# --- Exports ------------------------------------------------------------------------------------------------


def export_jax() -> Reader:
    """An exported model: the archive and its metadata; the program in it is JAX's own."""

    def samples() -> Sequence[Tree]:
        program = jax.export.export(jax.jit(lambda x: x + 1))(jax.ShapeDtypeStruct((2,), "float32")).serialize()
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("model.jax_export", bytes(program))
            archive.writestr("metadata.json", json.dumps({"model": "t2t_vit_micro", "img_size": 16}))
        return [{"model.zip": file.getvalue()}]

    def read(folder: Path) -> object:
        return load_exported(folder / "model.zip")

    return Reader(samples, by_suffix({".zip": damaged_zip(damaged_json)}), read)
