"""Arrows run one way: what each package may import; and the mirror: both model packages are built alike."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import torch
from flax import nnx

import parity
import t2t_jax
import t2t_torch
from parity.carry.rules import layer_rules
from t2t_config import MODELS

ROOT = Path(__file__).parents[1]
FACE = {"ours", "selftest", "requirements"}
"""The modules of parity that know our models."""


ALONE = {"t2t_torch.timm_models"}
"""Needs timm, which is not installed here; tests/timm runs where JAX is not."""


def imported(*modules: str) -> set[str]:
    """Top-level packages in memory after importing `modules` in a process of their own."""
    code = f"import sys, importlib\nfor m in {modules}: importlib.import_module(m)\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return {name.split(".")[0] for name in done.stdout.split()}


def modules_of(package: str) -> list[str]:
    """All importable modules below a package, by dotted name; `__main__` left out."""
    paths = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return [name for name in names if not name.endswith("__main__") and name not in ALONE]


# ---- arrows ----


def test_t2t_config_imports_the_standard_library_only():
    modules = modules_of("t2t_config")
    assert {"t2t_config", "t2t_config.weights.hub", "t2t_config.weights.download"} <= set(modules)
    found = imported(*modules) - imported()  # less what the interpreter loads itself, for editable installs
    assert "t2t_config" in found
    assert found <= sys.stdlib_module_names | {"t2t_config"}


def test_t2t_common_imports_no_framework():
    found = imported(*modules_of("t2t_common"))
    assert {"t2t_common", "t2t_config", "PIL", "numpy"} <= found
    assert not {"torch", "jax", "jaxlib", "flax", "t2t_torch", "t2t_jax", "parity"} & found


def test_t2t_jax_never_imports_torch():
    modules = modules_of("t2t_jax")
    assert {"t2t_jax.train", "t2t_jax.evaluate", "t2t_jax.checkpoint"} <= set(modules)
    found = imported(*modules)
    assert {"jax", "flax"} <= found
    assert not {"torch", "torchvision", "t2t_torch", "parity"} & found


def test_t2t_torch_never_imports_jax():
    found = imported(*modules_of("t2t_torch"))
    assert "torch" in found
    assert not {"jax", "jaxlib", "flax", "optax", "orbax", "t2t_jax", "parity"} & found


def test_the_engine_of_parity_knows_no_model():
    engine = [name for name in modules_of("parity") if not set(name.split(".")[1:]) & FACE]
    assert {"parity.proof.check", "parity.carry.convert", "parity.runs.jax_side", "parity.report.report"} <= set(engine)
    assert not {name for name in imported(*engine) if name.startswith("t2t_")}
    for name in engine:  # nor later, inside a function
        tree = ast.parse(Path(importlib.import_module(name).__file__ or "").read_text())
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [n for n in names if n.startswith("t2t_")], name


# ---- the mirror ----

MIRROR = (
    "models.layers",
    "models.transformer_block",
    "models.token_transformer",
    "models.token_performer",
    "models.t2t_vit",
    "models.t2t_vit_se",
    "models.t2t_vit_dense",
    "models.t2t_vit_ghost",
    "models.vit",
    "models.mix_token",
    "models.registry",
    "create",
    "weights.adapt",
    "training.mixup",
    "training.random_erasing",
    "training.loss",
)
TORCH_LAYERS = {"Linear", "LayerNorm", "Conv", "Dropout", "GELU", "Identity", "Sequential", "Unfold", "Activation"}
"""Written in t2t_jax/models/layers.py so that they mean what PyTorch's own mean, with what flax lacks."""


def classes(module: str) -> dict[str, type]:
    """Public classes that a module defines itself."""
    found = inspect.getmembers(importlib.import_module(module), inspect.isclass)
    return {name: cls for name, cls in found if cls.__module__ == module and not name.startswith("_")}


@pytest.mark.parametrize("file", MIRROR)
def test_mirror_files_hold_the_same_classes(file: str):
    ours, theirs = classes(f"t2t_torch.{file}"), classes(f"t2t_jax.{file}")
    assert theirs.keys() - ours.keys() <= TORCH_LAYERS | {"Buffer", "PreLogits"}
    assert ours.keys() <= theirs.keys()
    functions = [
        {
            name
            for name, f in inspect.getmembers(importlib.import_module(f"{package}.{file}"), inspect.isfunction)
            if f.__module__ == f"{package}.{file}" and not name.startswith("_")
        }
        for package in ("t2t_torch", "t2t_jax")
    ]
    assert functions[0] - functions[1] <= {"init_weights"}
    assert functions[1] - functions[0] <= {"trunc_normal", "symmetric_uniform", "cubic_weights"}


@pytest.mark.parametrize("file", MIRROR)
def test_the_constructors_take_the_same_arguments(file: str):
    ours, theirs = classes(f"t2t_torch.{file}"), classes(f"t2t_jax.{file}")
    for name, cls in ours.items():
        mine, other = (inspect.signature(c.__init__).parameters for c in (cls, theirs[name]))
        extra = {"dtype", "param_dtype", "rngs", "spec"}
        assert list(mine) == [parameter for parameter in other if parameter not in extra], name
        for parameter, value in mine.items():
            assert value.default == other[parameter].default, (name, parameter)


def test_create_model_takes_the_same_arguments():
    ours, theirs = (inspect.signature(m.create_model).parameters for m in (t2t_torch, t2t_jax))
    assert list(ours) == [name for name in theirs if name not in ("dtype", "param_dtype", "rngs", "scan_blocks")]
    assert t2t_torch.list_models() == t2t_jax.list_models()


VITS = ["vit_small_patch16_224", "vit_base_patch32_224_in21k", "vit_deit_tiny_distilled_patch16_224"]


@pytest.mark.parametrize("name", [*(name for name in MODELS if name.startswith("t2t_")), *VITS])
def test_module_paths_and_tensors_are_identical(name: str):
    """Every module at the same path, of the same kind; every tensor with the same name up to its layer's leaf."""
    with torch.device("meta"):
        torch_model = t2t_torch.create_model(name, img_size=64)
    jax_model = nnx.eval_shape(lambda: t2t_jax.create_model(name, img_size=64))
    ours = dict(torch_model.named_modules())
    theirs = {".".join(map(str, path)): module for path, module in nnx.iter_modules(jax_model)}
    assert ours.keys() == theirs.keys()
    for path, module in ours.items():
        kind, other = type(module).__name__, type(theirs[path]).__name__
        twins = {"ModuleList": "List", "Conv2d": "Conv", "ReLU": "Activation", "Sigmoid": "Activation"}
        twins |= {"Tanh": "Activation"}
        if path == "pre_logits" and kind == "Sequential":
            assert other == "PreLogits"
        else:
            assert other == twins.get(kind, kind), path
    leaves = {}
    for path, module in theirs.items():
        for rule in layer_rules(module):
            leaves[f"{path}.{rule.jax}"] = f"{path}.{rule.torch}"
    tensors = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(jax_model))}
    assert {leaves.get(tensor, tensor) for tensor in tensors} == set(torch_model.state_dict())


def test_the_public_face():
    """Names that are used from outside."""
    for package, names in {
        t2t_torch: ("create_model", "list_models", "load_checkpoint"),
        t2t_jax: ("create_model", "list_models"),
        parity: ("torch_to_jax", "jax_to_torch", "check", "assert_parity", "Report", "Rules"),
    }.items():
        assert set(names) <= set(package.__all__)
        assert all(hasattr(package, name) for name in package.__all__)
    assert jax.config.jax_enable_x64 is False
