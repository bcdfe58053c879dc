"""Checkpoint files as the projects that write them lay them out, made from an official state dict.

Written from each project's own model code (see `t2t_config.weights.layouts`), independently of the table that reads
them.
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

StateDict = Mapping[str, Tensor]


def noise(state_dict: StateDict) -> dict[str, Tensor]:
    """Other weights of the same names and shapes, which must not be the ones that are loaded."""
    return {name: value + 1 for name, value in state_dict.items()}


def release(state: StateDict) -> Any:
    """T2T-ViT's release files."""
    return {"state_dict_ema": OrderedDict(state)}


def timm_training(state: StateDict) -> Any:
    """timm's CheckpointSaver, as the authors' main.py uses it."""
    moments = {i: {"step": 9, "exp_avg": v * 0, "exp_avg_sq": v * 0} for i, v in enumerate(state.values())}
    args = argparse.Namespace(model="t2t_vit_7", opt="adamw", lr=1e-3, mean=None, amp=False, aa="rand-m9-mstd0.5-inc1")
    return {
        "epoch": 309,
        "arch": "t2t_vit_7",
        "state_dict": OrderedDict(noise(state)),
        "optimizer": {"state": moments, "param_groups": [{"lr": 1e-5, "params": list(moments)}]},
        "args": args,
        "version": 2,
        "state_dict_ema": OrderedDict(state),
        "amp": {"scale": 65536.0},
        "metric": 71.7,
    }


def transfer(state: StateDict) -> Any:
    """The authors' transfer_learning.py, trained with DataParallel."""
    return {"net": OrderedDict((f"module.{name}", value) for name, value in state.items()), "acc": 98.3, "epoch": 59}


def bare(state: StateDict) -> Any:
    return OrderedDict(state)


def mmpretrain(state: StateDict) -> Any:
    """A file of mmpretrain's zoo."""
    names = {}
    for name in state:
        if name.startswith("head."):
            names[name] = name.replace("head.", "head.layers.head.")
            continue
        new = re.sub(r"^blocks\.", "encoder.", name)
        new = new.replace(".norm1.", ".ln1.").replace(".norm2.", ".ln2.")
        new = new.replace(".mlp.fc1.", ".ffn.layers.0.0.").replace(".mlp.fc2.", ".ffn.layers.1.")
        names[name] = f"backbone.{new}"
    weights = OrderedDict((names[name], value) for name, value in state.items())
    return {"meta": {"mmcls_version": "0.18.0", "CLASSES": ["tench"], "epoch": 300}, "state_dict": weights}


def timm_pull_request(state: StateDict) -> Any:
    return OrderedDict((re.sub(r"^tokens_to_token\.", "patch_embed.", name), value) for name, value in state.items())


def paddle(state: StateDict) -> Any:
    """PaddleViT's state dict, as `paddle.save` prepares it for pickling."""
    arrays: dict[str, Any] = {}
    for name, value in state.items():
        new = name.replace("tokens_to_token.attention", "patch_embed.attn")
        new = new.replace("tokens_to_token.project.", "patch_embed.proj.")
        matrix = value.ndim == 2 and not name.endswith(".w")
        arrays[new] = (value.T.contiguous() if matrix else value).numpy()
    return {**arrays, "StructuredToParameterName@@": {name: f"linear_{i}.w_0" for i, name in enumerate(arrays)}}


def token_labeling(state: StateDict) -> Any:
    """T2T-ViT trained with token labeling: a second head over the tokens."""
    draw = torch.Generator().manual_seed(3)
    aux = {f"aux_{name}": torch.randn(v.shape, generator=draw).to(v) for name, v in state.items() if "head." in name}
    return {"state_dict_ema": OrderedDict({**state, **aux})}


def save_zip(content: Any, path: Path) -> None:
    torch.save(content, path)


def save_legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_paddle(content: Any, path: Path, protocol: int = 4) -> None:
    path.write_bytes(pickle.dumps(content, protocol=protocol))


FILES: dict[str, tuple[str, Callable[[StateDict], Any], Callable[[Any, Path], None], str, str]] = {
    # name: file, content, how it is written; what a report calls the entry and the layout
    "release": ("71.7_T2T_ViT_7.pth.tar", release, save_zip, "state_dict_ema", "official"),
    "release, legacy": ("71.7_T2T_ViT_7.pth.tar", release, save_legacy, "state_dict_ema", "official"),
    "timm training": ("model_best.pth.tar", timm_training, save_zip, "state_dict_ema", "official"),
    "timm training, legacy": ("checkpoint-309.pth.tar", timm_training, save_legacy, "state_dict_ema", "official"),
    "transfer": ("ckpt_0.05_0.0005_98.3.pth", transfer, save_zip, "net", "official"),
    "transfer, legacy": ("ckpt_0.05_0.0005_98.3.pth", transfer, save_legacy, "net", "official"),
    "bare": ("weights.pth", bare, save_zip, "", "official"),
    "bare, legacy": ("weights.pth", bare, save_legacy, "", "official"),
    "timm pull request": ("pytorch_model.bin", timm_pull_request, save_zip, "", "timm pull request"),
    "PaddleViT": ("t2t_vit_7.pdparams", paddle, save_paddle, "", "PaddleViT"),
    "token labeling": ("84.2_T2T_ViT_24.pth.tar", token_labeling, save_zip, "state_dict_ema", "token labeling"),
}
