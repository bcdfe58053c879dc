"""Readers of weights: checkpoint files, folders of the hub and of Orbax, checkpoints of runs, label maps, exports."""

from __future__ import annotations

import argparse
import datetime
import functools
import io
import json
import pickle
import tempfile
import zipfile
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save

import t2t_jax
import t2t_torch
from t2t_common.data.readers.sources import FolderSource
from t2t_common.data.token_labels import TokenLabelSource
from t2t_common.evaluation.weights_options import WeightsOptions
from t2t_config.class_names import class_names
from t2t_config.weights.metadata import describe_model, to_text
from t2t_config.weights.untrusted import check_table, making
from t2t_jax.checkpoint import init_weights
from t2t_jax.weights.torch_file import read_torch_file
from t2t_torch.checkpoint_file import read_checkpoint
from tools.reliability.fuzzing.formats import damaged_pickle, damaged_safetensors, damaged_zip
from tools.reliability.fuzzing.mutate import Change, Tree, damaged, damaged_json, damaged_tree
from tools.reliability.fuzzing.reader import Reader

TORCH_OWN = ("tmp/torchinductor*",)
"""A folder that PyTorch makes."""
MODEL: dict[str, Any] = {"img_size": 16, "in_chans": 1, "num_classes": 3}
"""Of `t2t_vit_micro`: the smallest model that has everything."""


def by_suffix(changes: Mapping[str, Change]) -> Callable[[Tree, Random], Tree]:
    """A folder with one file changed, in the way that suits its suffix."""

    def change(tree: Tree, rng: Random) -> Tree:
        def suited(data: bytes, rng: Random) -> bytes:
            name = next(name for name, content in tree.items() if content is data)
            return changes.get(Path(name).suffix, damaged)(data, rng)

        return damaged_tree(tree, rng, suited)

    return change


def tree_of(folder: Path) -> Tree:
    """The files of a folder that was written."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.is_file() or not any(path.iterdir())
    }


def made(write: Callable[[Path], object]) -> Tree:
    """What `write` puts into a folder."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        return tree_of(Path(folder))


def without_digests(tree: Tree) -> Tree:
    """A folder as earlier versions wrote it: what is damaged in it gets to the readers behind the digests."""
    found: Tree = {}
    for name, content in tree.items():
        if name.endswith("/sha256.json"):
            continue
        if isinstance(content, bytes) and name.endswith("config.json"):
            config = json.loads(content)
            config.pop("sha256", None)
            content = json.dumps(config).encode()
        elif isinstance(content, bytes) and name.endswith(".pth"):
            content = _zip_without_digests(content)
        found[name] = content
    return found


def _zip_without_digests(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/sha256.json")}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return file.getvalue()


@functools.cache
def torch_model() -> Any:
    return t2t_torch.create_model("t2t_vit_micro", **MODEL)


@functools.cache
def jax_model() -> Any:
    return t2t_jax.create_model("t2t_vit_micro", **MODEL)


def small_state() -> dict[str, Any]:
    """A few tensors under names that readers look at."""
    shapes = {"head.weight": (3, 4), "head.bias": (3,), "pos_embed": (1, 5, 4), "norm.weight": (4,), "w": (2, 2)}
    return {name: torch.ones(shape) for name, shape in shapes.items()}


def beside() -> dict[str, Any]:
    """What intact files hold beside their weights."""
    return {
        "random": np.random.RandomState(0).get_state(),
        "arrays": [np.zeros(3, kind) for kind in ("u4", "c8", "U3", "M8[s]", "O")] + [np.empty((0, 5), np.float32)],
        "values": [np.str_("a"), Path("a/b"), datetime.datetime(2020, 1, 2), deque([1])],
        "counts": defaultdict(list, a=[1]),
    }


# --- Files of PyTorch ---------------------------------------------------------------------------------------


def pth() -> Reader:
    return _pickled(_torch_files(zipped=True), damaged_zip(damaged_pickle))


def pth_legacy() -> Reader:
    return _pickled(_torch_files(zipped=False), damaged_pickle)


def pdparams() -> Reader:
    def samples() -> Sequence[Tree]:
        arrays = {name: value.numpy() for name, value in small_state().items()}
        whole = [
            arrays,
            {"model": arrays, "beside": beside()},
            {"model": arrays, "epoch": 3},
            {**arrays, "StructuredToParameterName@@": {"w": "w_0"}},
        ]
        return [{"weights.pdparams": pickle.dumps(content, protocol)} for content in whole for protocol in (2, 3, 4)]

    return _pickled(samples, damaged_pickle)


def _torch_files(zipped: bool) -> Callable[[], Sequence[Tree]]:
    def samples() -> Sequence[Tree]:
        state = small_state()
        training = {"state_dict": state, "state_dict_ema": state, "args": argparse.Namespace(lr=0.1, mean=(0.5,))}
        whole = [
            state,
            {"state_dict_ema": OrderedDict(state)},
            training,
            {"net": {f"module.{k}": v for k, v in state.items()}},
            {"state_dict": {f"model.{k}": v for k, v in state.items()}, "beside": beside()},
            {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in state.items()}},
            {"state_dict": state | {"w": state["w"].to_sparse(), "norm.weight": state["norm.weight"].to(torch.int8)}},
        ]
        found = []
        for content in (*whole, {"state_dict": state, "metadata": {"model": "t2t_vit_micro", "img_size": "[16, 32]"}}):
            file = io.BytesIO()
            torch.save(content, file, _use_new_zipfile_serialization=zipped)
            found.append(Tree({"weights.pth": file.getvalue()}))
        return found

    return samples


def _pickled(samples: Callable[[], Sequence[Tree]], change: Change) -> Reader:
    def read(folder: Path) -> object:
        path = next(folder.glob("weights.*"), folder / "weights.pth")
        return read_torch_file(path)

    return Reader(
        samples,
        lambda tree, rng: {name: change(data, rng) for name, data in tree.items() if isinstance(data, bytes)},
        read,
    )


def into_torch() -> Reader:
    """A whole model's file, loaded into that model."""

    def samples() -> Sequence[Tree]:
        model = torch_model()
        notes = to_text(describe_model(model))

        def write(folder: Path, end: str) -> None:
            t2t_torch.save_checkpoint(model, folder / f"weights{end}", metadata=notes)

        return [made(functools.partial(write, end=end)) for end in (".pth", ".safetensors")]

    def read(folder: Path) -> object:
        path = next(folder.glob("weights.*"), folder / "weights.pth")
        return t2t_torch.load_checkpoint(torch_model(), path)

    return Reader(
        samples, by_suffix({".pth": damaged_zip(damaged_pickle), ".safetensors": damaged_safetensors}), read, TORCH_OWN
    )


# --- safetensors and hub folders ----------------------------------------------------------------------------


def _safetensors(state: Mapping[str, Any], metadata: Mapping[str, str]) -> Tree:
    return {"weights.safetensors": save({name: value.numpy() for name, value in state.items()}, dict(metadata))}


def _safetensors_samples() -> Sequence[Tree]:
    notes = {"model": "t2t_vit_micro", "img_size": "16", "mean": "[0.5]", "num_classes": "3"}
    return [_safetensors(small_state(), notes), _safetensors({"a.weight": small_state()["w"]}, {"format": "pt"})]


def _safetensors_reader(samples: Callable[[], Sequence[Tree]], read: Callable[[Path], object]) -> Reader:
    change = by_suffix({".safetensors": damaged_safetensors})
    return Reader(samples, change, lambda folder: read(folder / "weights.safetensors"))


def safetensors_torch() -> Reader:
    return _safetensors_reader(_safetensors_samples, read_checkpoint)


def safetensors_jax() -> Reader:
    return _safetensors_reader(_safetensors_samples, read_torch_file)


def into_jax() -> Reader:
    """A whole model's file, loaded into that model."""

    def samples() -> Sequence[Tree]:
        return [_safetensors(torch_model().state_dict(), to_text(describe_model(torch_model())))]

    return _safetensors_reader(samples, lambda path: init_weights(jax_model(), path))


def hub_torch() -> Reader:
    return Reader(_hub_samples, _hub_change, lambda folder: t2t_torch.from_pretrained(folder / "model"), TORCH_OWN)


def hub_jax() -> Reader:
    return Reader(_hub_samples, _hub_change, lambda folder: t2t_jax.from_pretrained(folder / "model"), seconds=30)


def _hub_samples() -> Sequence[Tree]:
    tree = made(lambda folder: t2t_torch.save_pretrained(torch_model(), folder / "model"))
    return [tree, without_digests(tree)]


def _hub_change(tree: Tree, rng: Random) -> Tree:
    if rng.random() < 0.7:
        config = tree["model/config.json"]
        assert isinstance(config, bytes)
        return {**tree, "model/config.json": damaged_json(config, rng)}
    return by_suffix({".json": damaged_json, ".safetensors": damaged_safetensors})(tree, rng)


def options() -> Reader:
    """What the command lines of predict, evaluate and export make of the metadata of weights."""

    def samples() -> Sequence[Tree]:
        more = {"class_names": ["a", "b", "c"], "recipe": {"lr": 0.1}, "aux_head": False}
        notes = {**describe_model(torch_model()), **more}
        return [{"notes.json": json.dumps(notes).encode()}]

    def read(folder: Path) -> object:
        try:
            notes = json.loads((folder / "notes.json").read_bytes())
            if not isinstance(notes, dict):
                return None
        except (ValueError, OSError, RecursionError):
            return None  # what the file formats are there for
        try:
            arguments, how = WeightsOptions(checkpoint=folder / "notes.json").choose(notes)
            class_names(arguments["num_classes"] or 3, saved=notes.get("class_names"))
            with making(folder / "notes.json"):
                check_table(arguments, 10**6)
            return arguments, how
        except ValueError as error:  # what the options and the metadata say together has no file
            raise ValueError(f"notes.json: {error}") from error

    return Reader(samples, lambda tree, rng: damaged_tree(tree, rng, damaged_json), read)


# --- Label maps -------------------------------------------------------------------------------------------------


def label_map() -> Reader:
    """A tensor of torch.save, read without PyTorch."""

    def samples() -> Sequence[Tree]:
        found = []
        for dtype in (torch.float32, torch.float16, torch.int64):
            file = io.BytesIO()
            torch.save(torch.ones(2, 2, 3, 3).to(dtype), file)
            found.append(Tree({"maps/a/map1.pt": file.getvalue(), "train/a/map1.jpg": _tiny_jpeg()}))
        return found

    def read(folder: Path) -> object:
        images = FolderSource(folder / "train", ["a"])
        return TokenLabelSource(images, folder / "maps", 3).labelled(0)

    return Reader(samples, by_suffix({".pt": damaged_zip(damaged_pickle)}), read)


def _tiny_jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "JPEG")
    return file.getvalue()
