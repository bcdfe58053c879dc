"""The formats of checkpoints whose bits are flipped: how each is written, and read as a user would."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

from t2t_config.weights.hub import read_metadata
from t2t_config.weights.metadata import describe_model, to_text
from t2t_jax.checkpoint import load_model_state, save_model
from t2t_jax.state import model_arrays
from t2t_jax.training import checkpoints as jax_runs
from t2t_jax.weights.torch_file import read_torch_file, save_safetensors
from t2t_torch.checkpoint_file import read_checkpoint, save_checkpoint
from t2t_torch.training import checkpoints as torch_runs
from tools.reliability.fuzzing.folders import torch_state, train_state
from tools.reliability.fuzzing.weights import jax_model, torch_model

NAMES = {"class_names": ["a", "b", "c"]}


@dataclasses.dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        write: writes it into a folder.
        read: what is in that folder: "tensor NAME" and other parts -> something that can be compared.
    """

    write: Callable[[Path], object]
    read: Callable[[Path], Mapping[str, Any]]


def parts(tensors: Mapping[str, Any], **others: Any) -> dict[str, Any]:
    """`tensors` as bytes, dtype and shape, and the rest as text."""
    arrays = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    return {
        **{f"tensor {name}": (array.dtype.name, array.shape, array.tobytes()) for name, array in arrays.items()},
        **{name: repr(value) for name, value in others.items()},
    }


def torch_file(name: str) -> Format:
    """A file of `t2t_torch.save_checkpoint`."""

    def write(folder: Path) -> None:
        save_checkpoint(torch_model(), folder / name, metadata=to_text(describe_model(torch_model(), NAMES)))

    return Format(write, lambda folder: _read_torch(folder / name))


def _read_torch(path: Path) -> Mapping[str, Any]:
    found = read_checkpoint(path)
    return parts(found.state_dict, metadata=sorted(found.metadata.items()), entry=found.entry)


def foreign_zip() -> Format:
    """What `torch.save` alone writes: a training checkpoint in timm's layout."""

    def write(folder: Path) -> None:
        state = torch_model().state_dict()
        torch.save({"state_dict": state, "epoch": 3, "arch": "t2t_vit_micro"}, folder / "foreign.pth.tar")

    return Format(write, lambda folder: _read_torch(folder / "foreign.pth.tar"))


def jax_safetensors() -> Format:
    """A file of the JAX package, which reads it without PyTorch."""

    def write(folder: Path) -> None:
        path = folder / "w.safetensors"
        save_safetensors(model_arrays(jax_model()), path, to_text(describe_model(jax_model(), NAMES)))

    def read(folder: Path) -> Mapping[str, Any]:
        found = read_torch_file(folder / "w.safetensors")
        return parts(found.arrays, metadata=sorted(found.metadata.items(), key=str))

    return Format(write, read)


def orbax() -> Format:
    """A model folder of Orbax."""

    def write(folder: Path) -> None:
        save_model(folder / "model", jax_model(), describe_model(jax_model(), NAMES))

    def read(folder: Path) -> Mapping[str, Any]:
        found = load_model_state(folder / "model")
        return parts(found.arrays, metadata=sorted(found.metadata.items(), key=str))

    return Format(write, read)


def training_torch() -> Format:
    """The checkpoint of a run, as the run that continues reads it."""
    metadata = {"model": "t2t_vit_micro", "top1": 50.0}

    def write(folder: Path) -> None:
        with torch_runs.TrainingCheckpoints(folder, keep=2) as checkpoints:
            checkpoints.save(*torch_state(), metadata)

    def read(folder: Path) -> Mapping[str, Any]:
        state, iterator = torch_state()
        with torch_runs.TrainingCheckpoints(folder, keep=2) as checkpoints:
            notes = checkpoints.metadata
            checkpoints.restore(state, iterator)
        moments = state.optimizer.state_dict()["state"]
        memory = {f"{key} {name}": value for key, values in moments.items() for name, value in values.items()}
        average = {f"average {name}": value for name, value in state.ema.state.items()}
        rest = (state.step, iterator.get_state(), state.scheduler.state_dict()["last_epoch"])
        return parts({**state.raw, **average, **memory}, metadata=notes, rest=rest)

    return Format(write, read)


def training_jax() -> Format:
    """The same in JAX."""

    def write(folder: Path) -> None:
        with jax_runs.TrainingCheckpoints(folder, keep=2) as checkpoints:
            checkpoints.save(*train_state(), {"model": "t2t_vit_micro", "top1": 50.0})

    def read(folder: Path) -> Mapping[str, Any]:
        state, iterator = train_state()
        with jax_runs.TrainingCheckpoints(folder, keep=2) as checkpoints:
            notes = checkpoints.metadata
            state = checkpoints.restore(state, iterator)
        leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(state)}
        return parts(leaves, metadata=sorted(notes.items()), position=iterator.get_state())

    return Format(write, read)


def hub(package: str) -> Format:
    """A folder of `save_pretrained`; its card is for people."""

    def write(folder: Path) -> None:
        model = torch_model() if package == "t2t_torch" else jax_model()
        importlib.import_module(package).save_pretrained(model, folder / "hub", metadata=NAMES)
        (folder / "hub" / "README.md").unlink()

    def read(folder: Path) -> Mapping[str, Any]:
        model = importlib.import_module(package).from_pretrained(folder / "hub")
        if package == "t2t_torch":
            return parts(model.state_dict(), metadata=read_metadata(folder / "hub"))
        return parts(model_arrays(model), metadata=read_metadata(folder / "hub"))

    return Format(write, read)


def exported(package: str, name: str) -> Format:
    """An exported model; its tensors are what it answers."""

    def write(folder: Path) -> None:
        model = torch_model() if package == "t2t_torch" else jax_model()
        importlib.import_module(f"{package}.export").export_model(model, folder / name, metadata=NAMES)

    def read(folder: Path) -> Mapping[str, Any]:
        model = importlib.import_module(f"{package}.export").load_exported(folder / name)
        images = np.linspace(-1, 1, 512, dtype=np.float32)
        shape = (2, 1, 16, 16) if package == "t2t_torch" else (2, 16, 16, 1)
        return parts({"answer": model(images.reshape(shape))}, metadata=sorted(model.metadata.items(), key=str))

    return Format(write, read)


FORMATS: dict[str, Callable[[], Format]] = {
    "pth": functools.partial(torch_file, "w.pth"),
    "safetensors-torch": functools.partial(torch_file, "w.safetensors"),
    "safetensors-jax": jax_safetensors,
    "orbax": orbax,
    "run-torch": training_torch,
    "run-jax": training_jax,
    "hub-torch": functools.partial(hub, "t2t_torch"),
    "hub-jax": functools.partial(hub, "t2t_jax"),
    "pt2": functools.partial(exported, "t2t_torch", "m.pt2"),
    "onnx": functools.partial(exported, "t2t_torch", "m.onnx"),
    "jax-export": functools.partial(exported, "t2t_jax", "m.jax_export"),
    "foreign-zip": foreign_zip,
}
"""Name -> format."""
